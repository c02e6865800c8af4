from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.taxonomy.quotas import NONE, Candidates

Scores = Mapping[str, Mapping[str, float]]


def assign(
    scores: Scores, *, per_image: int, shares: Mapping[str, float], unit: int = 3
) -> dict[str, list[str]]:
    """Through `Candidates`, so many images at a time."""
    candidates = Candidates(tuple(shares))
    images = list(scores)
    for start in range(0, len(images), unit):
        candidates.add({image: scores[image] for image in images[start : start + unit]})
    rows = candidates.assign(per_image=per_image, shares=shares)
    types = tuple(shares)
    return {
        image: [types[n] for n in row if n != NONE] for image, row in zip(images, rows.tolist(), strict=True)
    }


def simply(scores: Scores, *, per_image: int, shares: Mapping[str, float]) -> dict[str, list[str]]:
    """The rule in words, step by step: the emptiest type takes the image it suits best."""
    taken: dict[str, list[str]] = {image: [] for image in scores}
    filled = dict.fromkeys(shares, 0.0)
    suits = {t: {i for i, row in scores.items() if row.get(t, 0) > 0} for t in shares}
    while True:
        free = {
            t: [i for i in suits[t] if t not in taken[i] and len(taken[i]) < per_image]
            for t, share in shares.items()
            if share > 0
        }
        able = [t for t, images in free.items() if images]
        if not able:
            return taken
        chosen = min(able, key=lambda t: (filled[t], len(suits[t]), t))
        taken[min(free[chosen], key=lambda i: (-scores[i][chosen], i))].append(chosen)
        filled[chosen] += 1 / shares[chosen]


def test_a_rare_type_gets_its_share_before_common_ones_fill_its_images() -> None:
    scores = {f"i{n}": {"common": 1.0, "other": 1.0} for n in range(10)}
    scores["i3"] = {"common": 1.0, "other": 1.0, "rare": 0.1}
    taken = assign(scores, per_image=1, shares={"common": 1.0, "other": 1.0, "rare": 1.0})
    counts = Counter(type_ for types in taken.values() for type_ in types)
    assert taken["i3"] == ["rare"]
    assert sorted(counts.values()) == [1, 4, 5]


def test_shares_steer_how_often_a_type_is_asked() -> None:
    scores = {f"i{n:02d}": {"a": 1.0, "b": 1.0, "off": 1.0} for n in range(40)}
    taken = assign(scores, per_image=1, shares={"a": 3.0, "b": 1.0, "off": 0.0})
    counts = Counter(type_ for types in taken.values() for type_ in types)
    assert counts == {"a": 30, "b": 10}


SCORES = st.dictionaries(
    st.text("abcdéf", min_size=1, max_size=3),
    # Quarters are the same numbers in 32 bits.
    st.dictionaries(st.sampled_from("uvwxyz"), st.integers(0, 4).map(lambda n: n / 4), max_size=6),
    max_size=12,
)


@given(scores=SCORES, per_image=st.integers(1, 4), seed=st.integers(0, 9), unit=st.integers(1, 5))
def test_the_columns_assign_as_the_rule_says_whatever_the_order_and_the_units(
    scores: dict[str, dict[str, float]], per_image: int, seed: int, unit: int
) -> None:
    shares = {"u": 1.0, "v": 2.0, "w": 0.5, "x": 1.0, "y": 0.0}
    expected = simply(scores, per_image=per_image, shares=shares)
    order = random.Random(seed).sample(sorted(scores), len(scores))
    shuffled = {image: scores[image] for image in order}
    assert assign(shuffled, per_image=per_image, shares=shares, unit=unit) == expected
    for image, types in expected.items():
        suitable = {type_ for type_, score in scores[image].items() if score > 0 and shares.get(type_)}
        assert len(types) == len(set(types)) == min(per_image, len(suitable))
