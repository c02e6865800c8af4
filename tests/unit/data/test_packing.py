"""Samples become rows, and the mask keeps them apart."""

import random

import pytest
import torch
from toy_data import ToySource, conversation, processor

from infinity_mm.data.encode import Encoded, Encoder
from infinity_mm.data.packing import best_fit, fill_rate, join, pack, plan_rows, split
from infinity_mm.errors import UserError


def test_the_longest_go_first_and_each_takes_the_fullest_row_it_fits() -> None:
    # 6 opens a row, 5 another, 4 fills the first, 3 fits the second, 2 fills it.
    assert best_fit([2, 6, 3, 5, 4], row_tokens=10) == [[1, 4], [3, 2, 0]]


def test_a_full_pack_has_a_fill_rate_of_one() -> None:
    assert fill_rate([[1, 4], [3, 2, 0]], [2, 6, 3, 5, 4], 10) == 1.0


def test_a_sample_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(UserError, match="11 tokens does not fit a row of 10"):
        best_fit([11], row_tokens=10)


def test_rows_are_shuffled_the_same_way_for_the_same_seed() -> None:
    lengths = list(range(1, 40))
    rows = plan_rows(lengths, 40, random.Random(1))
    assert rows == plan_rows(lengths, 40, random.Random(1))
    assert rows != best_fit(lengths, 40)
    assert sorted(rows) == sorted(best_fit(lengths, 40))


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


def test_split_is_the_inverse_of_join() -> None:
    batch = pack([samples()[:3], samples()[3:4], samples()[4:]], row_tokens=256, pad_id=3)
    rows = split(batch)
    assert len(rows) == 3
    assert rows[1].pixel_values is None
    again = join(rows)
    for name, value in vars(batch).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
