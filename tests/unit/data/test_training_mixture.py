"""Several sources behind one range of indices, and the random order over it."""

import itertools

import pytest
from toy_data import ToySource

from infinity_mm.data.mixture import Mixture, WeightedSource
from infinity_mm.data.permutation import permute
from infinity_mm.errors import UserError


def test_a_weight_is_how_often_a_sample_is_seen_in_an_epoch() -> None:
    mixture = Mixture(
        [
            WeightedSource(source=ToySource(size=4), weight=0.5),
            WeightedSource(source=ToySource(size=3), weight=2),
        ]
    )
    assert len(mixture) == 8
    assert [mixture.locate(0, i) for i in range(8)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip


def test_the_next_epoch_goes_on_where_a_part_of_a_source_ended() -> None:
    mixture = Mixture([WeightedSource(source=ToySource(size=4), weight=0.5)])
    assert [mixture.locate(epoch, i) for epoch in (0, 1, 2) for i in (0, 1)] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (0, 0), (0, 1),
    ]  # fmt: skip


def test_the_fingerprint_changes_with_a_weight() -> None:
    one, other = (Mixture([WeightedSource(source=ToySource(), weight=w)]) for w in (1, 2))
    assert one.fingerprint != other.fingerprint


def test_a_source_that_gives_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="data source 0 gives no sample"):
        Mixture([WeightedSource(source=ToySource(size=4), weight=0.01)])


def test_a_cap_bounds_what_one_epoch_holds_and_the_next_goes_on_there() -> None:
    mixture = Mixture(
        [WeightedSource(source=ToySource(size=5), cap=2), WeightedSource(source=ToySource(size=1), cap=9)]
    )
    assert len(mixture) == 3
    assert [mixture.locate(0, i) for i in range(3)] == [(0, 0), (0, 1), (1, 0)]
    assert [mixture.locate(1, i) for i in range(2)] == [(0, 2), (0, 3)]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000])
def test_a_permutation_holds_every_index_once(size: int) -> None:
    assert sorted(permute(i, size, 5) for i in range(size)) == list(range(size))


def test_a_permutation_depends_on_its_key_and_looks_random() -> None:
    first, second = ([permute(i, 1000, key) for i in range(1000)] for key in (1, 2))
    assert first != second
    # Neighbours land far apart: on average a third of the range, as in a random order.
    assert 280 < sum(abs(a - b) for a, b in itertools.pairwise(first)) / 999 < 390
