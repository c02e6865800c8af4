"""A resumable stream of packed rows that is the same for every number of processes.

    epoch, window --permute--> samples --encode, plan_rows, pack (worker processes)--> rows of the window
    rows of all windows, in order --every global_batch_rows--> one optimiser step --assign--> rank, micro-step
    (several processes only:) own rows --encode patches (worker processes)--> pixel_values

The state counts global rows only, so a run can go on with another number of processes, micro-batch or workers. For
that every process must know the packing of all rows; but patches, which are most of the work, are made for its own.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from infinity_mm.data.encode import Encoded, OverLong, RowEncoder
from infinity_mm.data.mixture import Mixture
from infinity_mm.data.packing import Packed, join, pack, plan_rows, split
from infinity_mm.data.permutation import permute
from infinity_mm.errors import explain
from infinity_mm.record import seed_for
from infinity_mm.vision.images import BadImage

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """The next global row to be used."""

    epoch: int = 0
    window: int = 0
    row: int = 0
    """Index among the rows of the window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How samples become rows and rows become batches."""

    row_tokens: int
    """Positions of one row."""
    global_batch_rows: int
    """Rows of one optimiser step, over all processes and micro-steps."""
    micro_batch_rows: int
    """Rows of one forward pass of one process."""
    window: int = 256
    """Samples packed together; more fill rows better and take longer to the first batch."""
    over_long: OverLong = "drop"
    """What happens to a sample longer than a row: dropped and counted, or an error."""
    seed: int = 0
    """Seed of the order of samples and rows."""
    num_workers: int = 2
    """Background processes that render and encode; 0 does it in the training process."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """One sample that was not trained on."""

    id: str
    reason: str


SampleKey = tuple[int, int]
"""(epoch, mixture index)."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """All rows of one window."""

    rows: Packed | None
    """None when every sample was dropped."""
    keys: tuple[tuple[SampleKey, ...], ...]
    """The samples of each row."""
    dropped: tuple[Drop, ...]


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one process needs for one optimiser step."""

    micro_batches: tuple[Packed, ...]
    next: LoaderState
    """Where the step after this one starts."""
    dropped: tuple[Drop, ...]
    """Samples dropped from windows first opened for this step."""


def assign(global_batch_rows: int, world_size: int, rank: int, micro_batch_rows: int) -> list[list[int]]:
    """Row numbers within a global batch for each micro-step of `rank`: dealt out in turn.

    Raises UserError when the numbers do not divide.
    """
    per_step = world_size * micro_batch_rows
    if global_batch_rows % per_step:
        raise explain(
            what=f"global_batch_rows={global_batch_rows} is not a multiple of {world_size} processes x "
            f"micro_batch_rows={micro_batch_rows}",
            where="training configuration",
            fix=f"set global_batch_rows to a multiple of {per_step}, or change micro_batch_rows",
        )
    own = list(range(rank, global_batch_rows, world_size))
    return [own[i : i + micro_batch_rows] for i in range(0, len(own), micro_batch_rows)]


class WindowDataset(Dataset[Window]):
    """Item (epoch, window) is that window, encoded and packed; a pure function of its index."""

    def __init__(
        self, mixture: Mixture, encoder: RowEncoder, config: LoaderConfig, *, with_pixels: bool = True
    ) -> None:
        self.mixture, self.encoder, self.config, self.with_pixels = mixture, encoder, config, with_pixels

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows, the last one may be smaller."""
        return -(-len(self.mixture) // self.config.window)

    def sample_indices(self, epoch: int, window: int) -> list[int]:
        """Mixture indices of the window's samples."""
        size = len(self.mixture)
        key = seed_for(self.config.seed, "sample-order", str(epoch))
        start = window * self.config.window
        return [permute(i, size, key) for i in range(start, min(start + self.config.window, size))]

    def __getitem__(self, index: tuple[int, int]) -> Window:
        """Encode and pack one window."""
        epoch, window = index
        samples: list[Encoded] = []
        keys: list[SampleKey] = []
        dropped: list[Drop] = []
        for i in self.sample_indices(epoch, window):
            sample = self._encode(epoch, i)
            if isinstance(sample, Drop):
                dropped.append(sample)
            else:
                samples.append(sample)
                keys.append((epoch, i))
        rng = random.Random(seed_for(self.config.seed, "row-order", f"{epoch}/{window}"))
        lengths = [len(sample.layout) for sample in samples]
        rows = plan_rows(lengths, self.config.row_tokens, rng, packs=self.encoder.packs)
        packed = [[samples[i] for i in row] for row in rows]
        return Window(
            rows=pack(packed, self.config.row_tokens, self.encoder.pad_id) if rows else None,
            keys=tuple(tuple(keys[i] for i in row) for row in rows),
            dropped=tuple(dropped),
        )

    def _encode(self, epoch: int, index: int) -> Encoded | Drop:
        try:
            conversation, turns = self.mixture.get(epoch, index)
        except BadImage as error:
            return Drop(id=f"epoch {epoch} index {index}", reason=f"bad image: {error}")
        if not conversation.messages:
            return Drop(id=conversation.id, reason="no messages")
        sample = self.encoder.encode(conversation, turns, with_pixels=self.with_pixels)
        if len(sample.layout) > self.config.row_tokens:
            if self.config.over_long == "error":
                raise explain(
                    what=f"sample {conversation.id} has {len(sample.layout)} tokens, "
                    f"a row {self.config.row_tokens}",
                    where="data loader (over_long: error)",
                    fix="raise row_tokens, or set over_long: drop",
                )
            return Drop(id=conversation.id, reason=f"over-long: {len(sample.layout)} tokens")
        return sample


class PixelDataset(Dataset[Tensor | None]):
    """Item (keys of the samples of one micro-batch) is their `pixel_values`."""

    def __init__(self, mixture: Mixture, encoder: RowEncoder) -> None:
        self.mixture, self.encoder = mixture, encoder

    def __getitem__(self, keys: Sequence[SampleKey]) -> Tensor | None:
        """Encode the images once more, this time with patches."""
        samples = [self.encoder.encode(*self.mixture.get(epoch, index)) for epoch, index in keys]
        pixels = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
        return torch.cat(pixels) if pixels else None


def count_rows(mixture: Mixture, encoder: RowEncoder, config: LoaderConfig) -> int:
    """Rows of the first epoch; later epochs differ by the few rows that another packing gives."""
    dataset = WindowDataset(mixture, encoder, config, with_pixels=False)
    windows = _in_workers(dataset, ((0, number) for number in range(dataset.windows_per_epoch)), config)
    return sum(len(window.keys) for window in windows)


class RowLoader:
    """Iterates over the optimiser steps of one process, from a state on, without end."""

    def __init__(
        self,
        mixture: Mixture,
        encoder: RowEncoder,
        config: LoaderConfig,
        *,
        state: LoaderState,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.mixture, self.encoder, self.config, self.state = mixture, encoder, config, state
        self.micro_steps = assign(config.global_batch_rows, world_size, rank, config.micro_batch_rows)
        self.all_rows_are_mine = world_size == 1

    def __iter__(self) -> Iterator[StepBatch]:
        """Batches with their patches."""
        dataset = WindowDataset(self.mixture, self.encoder, self.config, with_pixels=self.all_rows_are_mine)
        if self.all_rows_are_mine:
            for step, _ in self._steps(dataset):
                yield step
            return
        waiting: deque[StepBatch] = deque()

        def keys() -> Iterator[tuple[SampleKey, ...]]:
            for step, keys in self._steps(dataset):
                waiting.append(step)
                yield from keys

        pixels = _in_workers(PixelDataset(self.mixture, self.encoder), keys(), self.config)
        for first in pixels:
            step = waiting.popleft()
            rest = itertools.islice(pixels, len(step.micro_batches) - 1)
            filled = [
                replace(batch, pixel_values=values)
                for batch, values in zip(step.micro_batches, [first, *rest], strict=True)
            ]
            yield replace(step, micro_batches=tuple(filled))

    def _steps(self, dataset: WindowDataset) -> Iterator[tuple[StepBatch, list[tuple[SampleKey, ...]]]]:
        """Batches as windows give them, with the samples of each micro-batch."""
        skip, num_empty = self.state.row, 0
        batch: list[tuple[Packed, tuple[SampleKey, ...]]] = []
        dropped: list[Drop] = []
        place = (self.state.epoch, self.state.window)
        windows = _in_workers(dataset, _window_numbers(place, dataset.windows_per_epoch), self.config)
        for (epoch, number), window in zip(_window_numbers(place, dataset.windows_per_epoch), windows):
            num_empty = 0 if window.rows is not None else num_empty + 1
            if num_empty > dataset.windows_per_epoch:
                raise explain(
                    what=f"no sample of a whole epoch could be used; the last one: {window.dropped[-1]}",
                    where="data loader",
                    fix="look at the reason; an over-long sample needs a larger row_tokens",
                )
            # Of a window opened halfway through, the drops were reported before the interruption.
            dropped += [] if skip else window.dropped
            rows = [] if window.rows is None else split(window.rows)
            for r, (row, row_keys) in enumerate(zip(rows, window.keys)):
                if r < skip:
                    continue
                batch.append((row, row_keys))
                if len(batch) == self.config.global_batch_rows:
                    own = [[batch[i] for i in numbers] for numbers in self.micro_steps]
                    step = StepBatch(
                        micro_batches=tuple(join([row for row, _ in part]) for part in own),
                        next=LoaderState(epoch=epoch, window=number, row=r + 1),
                        dropped=tuple(dropped),
                    )
                    yield step, [tuple(key for _, keys in part for key in keys) for part in own]
                    batch, dropped = [], []
            skip = 0


def _window_numbers(start: tuple[int, int], windows_per_epoch: int) -> Iterator[tuple[int, int]]:
    """(epoch, window) without end."""
    epoch, window = start
    while True:
        yield epoch, window
        window += 1
        if window == windows_per_epoch:
            epoch, window = epoch + 1, 0


class _Order(Sampler[Any]):
    """Hands given indices to a DataLoader, as they come."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[Any]:
        return self._indices


def _in_workers(dataset: Dataset[T], indices: Iterator[Any], config: LoaderConfig) -> Iterator[T]:
    """Items of `dataset` in the order of `indices`, made ahead in background processes."""
    return iter(
        DataLoader(
            dataset,
            sampler=_Order(indices),
            batch_size=None,
            num_workers=config.num_workers,
            multiprocessing_context="spawn" if config.num_workers else None,
            prefetch_factor=2 if config.num_workers else None,
            worker_init_fn=_outlive_sigterm,
        )
    )


def _outlive_sigterm(worker: int) -> None:
    """A SIGTERM to the whole process group is for the trainer, which then saves and ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
