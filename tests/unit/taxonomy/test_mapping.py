from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.record import Tag
from infinity_mm.taxonomy.mapping import Seed, fit_mapping
from infinity_mm.taxonomy.quotas import assign_types
from infinity_mm.taxonomy.seeds import load_seeds
from infinity_mm.taxonomy.tree import Tree

SEEDS = [
    Seed(tags=("street", "car"), type="count"),
    Seed(tags=("street", "sign"), type="read"),
    Seed(tags=("sign",), type="read"),
]


def test_the_weights_are_those_of_the_documented_formula() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"])
    street, car = 0.5 * (math.log(3 / 3) + 1), 0.5 * (math.log(3 / 2) + 1)
    length = math.hypot(street, car)
    assert mapping.weights["count"] == pytest.approx({"street": street / length, "car": car / length})


def test_a_tag_of_one_type_weighs_more_than_a_tag_of_all() -> None:
    weights = fit_mapping(SEEDS, ["count", "read"]).weights["count"]
    assert weights["car"] > weights["street"] > 0


def test_types_are_ranked_by_the_score_weighted_mean_over_the_images_tags() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"])
    scores = mapping.score([Tag(name="sign", score=0.9), Tag(name="car", score=0.3)])
    assert list(scores) == ["read", "count"]
    assert scores["count"] == pytest.approx(0.3 * mapping.weights["count"]["car"] / 1.2)


def test_an_image_with_no_or_unknown_tags_suits_nothing() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"])
    assert mapping.score([]) == {}
    assert mapping.score([Tag(name="whale", score=1.0)]) == {}


def test_seeds_of_unknown_types_are_left_out_and_types_without_seeds_have_no_weights() -> None:
    mapping = fit_mapping(SEEDS, ["count", "empty"])
    assert mapping.weights["empty"] == {}
    assert set(mapping.weights) == {"count", "empty"}


def test_the_artifact_can_be_read_both_ways() -> None:
    plain = fit_mapping(SEEDS, ["count", "read"]).to_plain()
    assert list(plain["best_tags_of_type"]["count"]) == ["car", "street"]
    assert list(plain["best_types_of_tag"]["street"]) == ["count", "read"]


def test_the_order_of_seeds_does_not_matter() -> None:
    shuffled = random.Random(0).sample(SEEDS, len(SEEDS))
    types = ["count", "read"]
    assert fit_mapping(SEEDS, types).to_plain() == fit_mapping(shuffled, types).to_plain()


def test_a_rare_type_gets_its_share_before_common_ones_fill_its_images() -> None:
    scores = {f"i{n}": {"common": 1.0, "other": 1.0} for n in range(10)}
    scores["i3"] = {"common": 1.0, "other": 1.0, "rare": 0.1}
    taken = assign_types(scores, per_image=1, shares={"common": 1.0, "other": 1.0, "rare": 1.0})
    counts = Counter(type_ for types in taken.values() for type_ in types)
    assert taken["i3"] == ["rare"]
    assert sorted(counts.values()) == [1, 4, 5]


def test_shares_steer_how_often_a_type_is_asked() -> None:
    scores = {f"i{n:02d}": {"a": 1.0, "b": 1.0, "off": 1.0} for n in range(40)}
    taken = assign_types(scores, per_image=1, shares={"a": 3.0, "b": 1.0, "off": 0.0})
    counts = Counter(type_ for types in taken.values() for type_ in types)
    assert counts == {"a": 30, "b": 10}


SCORES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.dictionaries(st.sampled_from("uvwxyz"), st.floats(0, 1), max_size=6),
    max_size=12,
)


@given(scores=SCORES, per_image=st.integers(1, 4), seed=st.integers(0, 9))
def test_images_get_what_suits_them_and_the_order_of_images_does_not_matter(
    scores: dict[str, dict[str, float]], per_image: int, seed: int
) -> None:
    shares = dict.fromkeys("uvwxy", 1.0)
    taken = assign_types(scores, per_image=per_image, shares=shares)
    for image, types in taken.items():
        suitable = {type_ for type_, score in scores[image].items() if score > 0 and type_ in shares}
        assert set(types) <= suitable
        assert len(types) == len(set(types)) == min(per_image, len(suitable))
    order = random.Random(seed).sample(sorted(scores), len(scores))
    assert assign_types({i: scores[i] for i in order}, per_image=per_image, shares=shares) == taken


def test_wind_tunnel_seeds_cover_every_type_with_questions() -> None:
    tree = Tree.load("windtunnel")
    seeds = load_seeds("windtunnel", tree, num_scenes=60)
    assert {seed.type for seed in seeds if seed.question} == set(tree.leaves)


def test_tree_seeds_are_the_typical_tags_of_its_types() -> None:
    tree = Tree.load("default")
    seeds = load_seeds("tree", tree, num_scenes=1)
    assert [seed.type for seed in seeds] == list(tree.leaves)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not a seed"),
        ('{"tags": ["duck"]}', "not a seed: KeyError"),
        ('{"tags": ["duck"], "type": "no/such/type"}', "no type `no/such/type`"),
    ],
)
def test_a_faulty_seed_is_an_error_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"tags": ["text"], "type": "fine_single/text/sign_text"}\n' + line + "\n")
    with pytest.raises(UserError, match=message) as error:
        load_seeds(str(file), Tree.load("default"), num_scenes=1)
    assert "line 2" in str(error.value)
