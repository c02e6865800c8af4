"""A resumable stream of packed rows that is the same for every number of processes.

    epoch, window --permute--> samples --encode, plan_rows, pack (worker processes)--> rows of the window
    rows of all windows, in order --every global_batch_rows--> one optimiser step --assign--> rank, micro-step

The state counts global rows only, so a run can go on with another number of processes, micro-batch or workers.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from infinity_mm.data.encode import Encoded, Encoder, OverLong
from infinity_mm.data.mixture import Mixture
from infinity_mm.data.packing import Packed, join, pack, plan_rows
from infinity_mm.data.permutation import permute
from infinity_mm.errors import explain
from infinity_mm.record import seed_for
from infinity_mm.vision.images import BadImage


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


@dataclass(frozen=True, kw_only=True)
class Window:
    """All rows of one window."""

    rows: tuple[Packed, ...]
    """One batch of one row each, in order."""
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

    def __init__(self, mixture: Mixture, encoder: Encoder, config: LoaderConfig) -> None:
        self.mixture, self.encoder, self.config = mixture, encoder, config

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
        dropped: list[Drop] = []
        for i in self.sample_indices(epoch, window):
            sample = self._encode(epoch, i)
            if isinstance(sample, Drop):
                dropped.append(sample)
            else:
                samples.append(sample)
        rng = random.Random(seed_for(self.config.seed, "row-order", f"{epoch}/{window}"))
        rows = plan_rows([len(sample.layout) for sample in samples], self.config.row_tokens, rng)
        packed = tuple(
            pack([[samples[i] for i in row]], self.config.row_tokens, self.encoder.pad_id) for row in rows
        )
        return Window(rows=packed, dropped=tuple(dropped))

    def _encode(self, epoch: int, index: int) -> Encoded | Drop:
        try:
            conversation, turns = self.mixture.get(epoch, index)
        except BadImage as error:
            return Drop(id=f"epoch {epoch} index {index}", reason=f"bad image: {error}")
        if not conversation.messages:
            return Drop(id=conversation.id, reason="no messages")
        sample = self.encoder.encode(conversation, turns)
        if len(sample.layout) > self.config.row_tokens:
            if self.config.over_long == "error":
                raise explain(
                    what=f"sample {sample.layout.id} has {len(sample.layout)} tokens, a row {self.config.row_tokens}",
                    where="data loader (over_long: error)",
                    fix="raise row_tokens, or set over_long: drop",
                )
            return Drop(id=sample.layout.id, reason=f"over-long: {len(sample.layout)} tokens")
        if sample.layout.num_labels == 0:
            return Drop(id=sample.layout.id, reason="nothing to learn: all answers are empty")
        return sample


def count_rows(dataset: WindowDataset) -> int:
    """Rows of the first epoch; later epochs differ by the few rows that another packing gives."""
    return sum(len(dataset[0, window].rows) for window in range(dataset.windows_per_epoch))


class _WindowOrder(Sampler[tuple[int, int]]):
    """(epoch, window) without end, from a given one on."""

    def __init__(self, start: tuple[int, int], windows_per_epoch: int) -> None:
        self.start, self.windows_per_epoch = start, windows_per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, window = self.start
        while True:
            yield epoch, window
            window += 1
            if window == self.windows_per_epoch:
                epoch, window = epoch + 1, 0


def _outlive_sigterm(worker: int) -> None:
    """A SIGTERM to the whole process group is for the trainer, which then saves and ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class RowLoader:
    """Iterates over the optimiser steps of one process, from a state on, without end."""

    def __init__(
        self, dataset: WindowDataset, *, state: LoaderState, rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset, self.state = dataset, state
        config = dataset.config
        self.micro_steps = assign(config.global_batch_rows, world_size, rank, config.micro_batch_rows)

    def __iter__(self) -> Iterator[StepBatch]:
        config = self.dataset.config
        order = _WindowOrder((self.state.epoch, self.state.window), self.dataset.windows_per_epoch)
        windows = DataLoader(
            self.dataset,
            sampler=order,
            batch_size=None,
            num_workers=config.num_workers,
            multiprocessing_context="spawn" if config.num_workers else None,
            prefetch_factor=2 if config.num_workers else None,
            worker_init_fn=_outlive_sigterm,
        )
        skip, empty = self.state.row, 0
        batch: list[Packed] = []
        dropped: list[Drop] = []
        for (epoch, number), window in zip(order, windows):
            empty = empty + 1 if not window.rows else 0
            if empty > self.dataset.windows_per_epoch:
                raise explain(
                    what=f"no sample of a whole epoch could be used; the last one: {window.dropped[-1]}",
                    where="data loader",
                    fix="look at the reason; an over-long sample needs a larger row_tokens",
                )
            # Of a window opened halfway through, the drops were reported before the interruption.
            dropped += [] if skip else window.dropped
            for row in range(skip, len(window.rows)):
                batch.append(window.rows[row])
                if len(batch) == config.global_batch_rows:
                    yield StepBatch(
                        micro_batches=tuple(join([batch[i] for i in rows]) for rows in self.micro_steps),
                        next=LoaderState(epoch=epoch, window=number, row=row + 1),
                        dropped=tuple(dropped),
                    )
                    batch, dropped = [], []
            skip = 0
