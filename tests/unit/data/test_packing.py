"""Samples become rows, and the mask keeps them apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_data import ToySource, conversation, processor

from infinity_mm.data.encode import Encoded, Encoder
from infinity_mm.data.packing import balanced_fit, best_fit, join, pack
from infinity_mm.errors import UserError


def test_the_longest_go_first_and_each_takes_the_fullest_row_it_fits() -> None:
    # 6 opens a row, 5 another, 4 fills the first, 3 fits the second, 2 fills it.
    assert best_fit([2, 6, 3, 5, 4], row_tokens=10) == [[1, 4], [3, 2, 0]]


def test_a_sample_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(UserError, match="11 tokens does not fit a row of 10"):
        best_fit([11], row_tokens=10)


def test_a_row_takes_no_more_vision_work_than_its_budget() -> None:
    # By tokens alone all four would share one row. What has no vision work comes last, into the fullest row it fits.
    assert best_fit([4, 3, 2, 1], 10, costs=[6, 5, 4, 0], row_cost=10) == [[0, 2, 3], [1]]
    with pytest.raises(UserError, match="does not fit a row"):
        best_fit([4], 10, costs=[11], row_cost=10)


@given(
    samples=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), max_size=60),
    row_cost=st.none() | st.integers(30, 60),
)
def test_every_sample_is_in_one_row_and_no_row_is_over_a_budget(
    samples: list[tuple[int, int]], row_cost: int | None
) -> None:
    lengths, costs = [length for length, _ in samples], [cost for _, cost in samples]
    rows = best_fit(lengths, 50, costs, row_cost)
    assert sorted(i for row in rows for i in row) == list(range(len(samples)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)
    assert row_cost is None or all(sum(costs[i] for i in row) <= row_cost for row in rows)


def test_rows_have_equal_vision_work_where_that_costs_no_row() -> None:
    lengths, costs = [5, 5, 5, 5, 5, 5, 5, 5], [8, 8, 8, 8, 0, 0, 0, 0]
    rows = balanced_fit(lengths, 10, costs, None)
    assert sorted(sum(costs[i] for i in row) for row in rows) == [8, 8, 8, 8]
    # Here equal work would leave rows half empty.
    assert len(balanced_fit([9, 9, 1, 1], 10, [1, 1, 9, 9], None)) == 2
    assert len(balanced_fit([5, 5, 5, 5], 10, [9, 9, 9, 1], None)) == 2


def samples() -> list[Encoded]:
    encoder = Encoder(processor())
    return [encoder.encode(ToySource()[i], "causal") for i in range(6)]


def test_packed_rows_number_samples_and_images_and_restart_positions() -> None:
    a, b = (
        Encoder(processor()).encode(conversation("Q", "A", images=n, id_=f"{n}"), "causal") for n in (1, 2)
    )
    batch = pack([[a, b], [a]], row_tokens=128, pad_id=3)
    first, second = len(a.layout), len(b.layout)
    assert batch.sample_ids[0].tolist() == [1] * first + [2] * second + [0] * (128 - first - second)
    assert batch.position_ids[0, first].item() == 0
    assert batch.ids == (("1", "2"), ("1",))
    assert batch.num_images == 4
    assert batch.view_shapes is not None
    assert sorted(set(batch.view_shapes[:, 0].tolist())) == [0, 1, 2, 3]
    assert batch.num_tokens == 2 * first + second
    assert batch.num_labels == 2 * a.layout.num_labels + b.layout.num_labels


def test_rows_joined_later_are_those_packed_together() -> None:
    parts = [samples()[:3], samples()[3:4], samples()[4:]]
    together = pack(parts, row_tokens=256, pad_id=3)
    joined = join([pack([part], row_tokens=256, pad_id=3) for part in parts])
    for name, value in vars(together).items():
        other = getattr(joined, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_a_row_without_samples_is_padding() -> None:
    batch = pack([[]], row_tokens=4, pad_id=3)
    assert batch.input_ids.tolist() == [[3, 3, 3, 3]]
    assert (batch.num_labels, batch.num_tokens, batch.num_images) == (0, 0, 0)
