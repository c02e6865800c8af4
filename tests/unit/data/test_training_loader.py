"""The stream of rows: the same for every number of processes, and resumable at every step."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from PIL import Image
from toy_data import ToySource, conversation, processor

from infinity_mm.data.conversation import Conversation
from infinity_mm.data.encode import Encoder
from infinity_mm.data.loader import LoaderConfig, LoaderState, RowLoader, StepBatch, assign, count_rows
from infinity_mm.data.mixture import Mixture, WeightedSource
from infinity_mm.errors import UserError
from infinity_mm.vision.images import BadImage

CONFIG = LoaderConfig(row_tokens=100, global_batch_rows=4, micro_batch_rows=1, window=8, num_workers=0)


START = LoaderState()


def loader(state: LoaderState = START, source: Any = None, **keys: Any) -> RowLoader:
    mixture = Mixture([WeightedSource(source=source or ToySource())])
    config = keys.pop("config", CONFIG)
    return RowLoader(mixture, Encoder(processor()), config, state=state, **keys)


def ids(step: StepBatch) -> list[list[tuple[str, ...]]]:
    return [list(batch.ids) for batch in step.micro_batches]


def test_rows_are_dealt_to_processes_in_turn() -> None:
    assert assign(8, world_size=2, rank=0, micro_batch_rows=2) == [[0, 2], [4, 6]]
    assert assign(8, world_size=2, rank=1, micro_batch_rows=2) == [[1, 3], [5, 7]]


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="not a multiple of 2 processes x micro_batch_rows=3"):
        assign(8, world_size=2, rank=0, micro_batch_rows=3)


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_processes_together_see_the_rows_of_one(world_size: int) -> None:
    alone = list(islice(loader(), 5))
    ranks = [list(islice(loader(rank=r, world_size=world_size), 5)) for r in range(world_size)]
    for number, step in enumerate(alone):
        rows: dict[int, tuple[str, ...]] = {}
        for rank, steps in enumerate(ranks):
            assert steps[number].next == step.next
            for numbers, batch in zip(
                assign(4, world_size, rank, 1), steps[number].micro_batches, strict=True
            ):
                rows |= dict(zip(numbers, batch.ids, strict=True))
        assert [rows[i] for i in range(4)] == [row for batch in ids(step) for row in batch]


def test_patches_made_later_are_those_made_at_once() -> None:
    for at_once, later in zip(islice(loader(), 3), islice(loader(rank=0, world_size=2), 3)):
        for a, b in zip(at_once.micro_batches[::2], later.micro_batches, strict=True):
            if a.pixel_values is None or b.pixel_values is None:
                assert a.pixel_values is b.pixel_values
            else:
                assert torch.equal(a.pixel_values, b.pixel_values)


def test_a_stream_opened_at_any_step_goes_on_as_if_never_closed() -> None:
    steps = list(islice(loader(), 8))
    for number in range(7):
        resumed = list(islice(loader(steps[number].next), 7 - number))
        assert [ids(step) for step in resumed] == [ids(step) for step in steps[number + 1 :]]


def test_every_epoch_holds_every_sample_once_in_another_order() -> None:
    mixture, encoder = Mixture([WeightedSource(source=ToySource())]), Encoder(processor())
    num_rows = count_rows(mixture, encoder, CONFIG)
    seen = [
        id_
        for step in islice(loader(), num_rows // 4 + 1)
        for batch in ids(step)
        for row in batch
        for id_ in row
    ]
    assert sorted(seen[:20]) == sorted(f"s{i}" for i in range(20))
    orders = [WindowOrder(mixture, encoder).indices(epoch) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]


class WindowOrder:
    """The order of samples of one epoch."""

    def __init__(self, mixture: Mixture, encoder: Encoder) -> None:
        from infinity_mm.data.loader import WindowDataset

        self.dataset = WindowDataset(mixture, encoder, CONFIG)

    def indices(self, epoch: int) -> list[int]:
        return [
            i for w in range(self.dataset.windows_per_epoch) for i in self.dataset.sample_indices(epoch, w)
        ]


class OneBad(ToySource):
    """Sample 3 is too long, sample 5 has a bad image, sample 7 has no exchange."""

    def __getitem__(self, index: int) -> Conversation:
        if index == 5:
            raise BadImage("truncated")
        if index == 7:
            return Conversation(id="s7", images=(Image.new("RGB", (8, 8)),), messages=())
        return conversation("What?", "red " * 200, id_="s3") if index == 3 else super().__getitem__(index)


def reasons(steps: Sequence[StepBatch]) -> set[str]:
    return {drop.reason.partition(":")[0] for step in steps for drop in step.dropped}


def test_unusable_samples_are_dropped_with_a_reason() -> None:
    steps = list(islice(loader(source=OneBad(size=8)), 1))
    assert reasons(steps) == {"bad image", "no messages", "over-long"}


def test_an_over_long_sample_is_an_error_where_the_policy_says_so() -> None:
    config = LoaderConfig(
        row_tokens=100, global_batch_rows=4, micro_batch_rows=1, window=8, num_workers=0, over_long="error"
    )
    with pytest.raises(UserError, match=r"sample s3 has \d+ tokens, a row 100"):
        list(islice(loader(source=OneBad(size=8), config=config), 3))


def test_a_source_without_a_usable_sample_ends_with_an_error() -> None:
    with pytest.raises(UserError, match="no sample of a whole epoch could be used"):
        next(
            iter(
                loader(
                    config=LoaderConfig(row_tokens=8, global_batch_rows=1, micro_batch_rows=1, num_workers=0)
                )
            )
        )


def test_background_processes_give_the_same_rows() -> None:
    config = LoaderConfig(row_tokens=100, global_batch_rows=4, micro_batch_rows=1, window=8, num_workers=1)
    expected = [ids(step) for step in islice(loader(), 2)]
    assert [ids(step) for step in islice(loader(config=config), 2)] == expected
