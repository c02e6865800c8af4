"""Diversity of questions: exact figures for tiny sets, and what they must not depend on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.quality.diversity import (
    Gauge,
    dispersion,
    distinct_share,
    entropy_bits,
)


def test_entropy_is_that_of_the_shares() -> None:
    assert entropy_bits([4, 4, 4, 4]) == 2
    assert entropy_bits([7]) == entropy_bits([]) == 0
    assert entropy_bits([1, 1, 2]) == 1.5


def test_distinct_runs_of_words_are_counted_over_all_questions() -> None:
    texts = ["What color is it?", "what color is she"]
    assert distinct_share(texts, 1) == 5 / 8
    assert distinct_share(texts, 2) == 4 / 6
    assert distinct_share(texts, 3) == 3 / 4
    assert distinct_share(["Why?"], 2) == 0


def test_a_chinese_character_is_a_word() -> None:
    assert distinct_share(["几只狗", "几只猫"], 1) == 4 / 6


def test_the_same_text_has_no_dispersion_and_texts_without_a_common_triple_have_all() -> None:
    assert dispersion(["abc"] * 3) == pytest.approx(0, abs=1e-12)
    assert dispersion(["aaaa", "bbbb"]) == pytest.approx(1)
    assert dispersion(["one"]) == 0


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=12))
def test_dispersion_is_the_mean_over_all_pairs(texts: list[str]) -> None:
    pairs = [dispersion([left, right]) for i, left in enumerate(texts) for right in texts[:i]]
    assert dispersion(texts) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)


def test_the_figures_do_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinity_mm.quality.diversity.MOST_MEASURED", 20)
    rows = [(f"{n}", f"type{n % 4}", f"What is number {n}?") for n in range(60)]
    shuffled = random.Random(0).sample(rows, len(rows))
    read = []
    for some in (rows, shuffled):
        gauge = Gauge()
        for row in some:
            gauge.add(*row)
        read.append(gauge.read())
    assert read[0] == read[1]
    assert (read[0].questions, read[0].measured, read[0].types) == (60, 20, 4)
    assert (read[0].type_entropy_bits, read[0].effective_types) == (2, 4)
