"""A resumable stream of packed rows that is the same for every number of processes.

    step --phase--> windows --plan (a worker process)--> rows --every global_batch_rows--> one optimiser step
    one step --assign, by vision work--> rows of this process --encode, pack (worker processes)--> micro-batches

The state counts global rows only, so a run can go on with another number of processes, micro-batch or workers. Every
process plans all rows, from measurements, and reads the texts and images of its own rows alone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from infinity_mm.data.conversation import keep_exchanges
from infinity_mm.data.encode import Encoded, RowEncoder
from infinity_mm.data.measure import BAD_SAMPLE, one_line
from infinity_mm.data.mixture import Phase, phase_at
from infinity_mm.data.packing import Packed, pack
from infinity_mm.data.plan import Drop, Planned, PlannedRow, PlannedWindows, Planner, SampleKey
from infinity_mm.data.workers import in_workers
from infinity_mm.errors import explain
from infinity_mm.record import digest


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where the next optimiser step begins, and what the steps so far were made of."""

    step: int = 0
    """Steps so far; it decides the phase of the mixture that the next step takes."""
    phase: int = 0
    """Phase that the place below belongs to; where the next step is of another one, that begins at its beginning."""
    epoch: int = 0
    window: int = 0
    row: int = 0
    """Index among the rows of the window."""
    chain: str = ""
    """Hash over the sample ids of all steps so far."""
    before: tuple[int, int, int, int, str] = (0, 0, 0, 0, "")
    """Phase, epoch, window, row and chain one step ago: enough to check that this state still means what it meant."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", tuple(self.before))  # JSON has lists only


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How rows become batches."""

    global_batch_rows: int
    """Rows of one optimiser step, over all processes and micro-steps."""
    micro_batch_rows: int
    """Rows of one forward pass of one process."""
    num_workers: int = 2
    """Background processes that read and encode; one more plans. 0 does all of it in the training process."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one process needs for one optimiser step."""

    micro_batches: tuple[Packed, ...]
    next: LoaderState
    """Where the step after this one starts."""
    opened: tuple[SampleKey, ...]
    """All samples of windows first opened for this step, of all processes."""
    planned: tuple[Planned, ...]
    """The samples in the rows of this step, of all processes."""
    dropped: tuple[Drop, ...]
    """Samples of the opened windows that are in no row, of all processes."""
    spoiled: tuple[Drop, ...] = ()
    """Samples in the rows of this process that turned out unreadable; their places are padding."""


def assign(costs: Sequence[int], world_size: int, rank: int, micro_batch_rows: int) -> list[list[int]]:
    """Row numbers of a global batch for each micro-step of `rank`, so that all processes have equal work.

    Rows in order of their vision work are dealt out round by round, the heaviest of a round to the process with the
    least so far. Raises UserError when the numbers do not divide.
    """
    per_step = world_size * micro_batch_rows
    if len(costs) % per_step:
        raise explain(
            what=f"global_batch_rows={len(costs)} is not a multiple of {world_size} processes x "
            f"micro_batch_rows={micro_batch_rows}",
            where="training configuration",
            fix=f"set global_batch_rows to a multiple of {per_step}, or change micro_batch_rows",
        )
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    loads = [0] * world_size
    own: list[int] = []
    for start in range(0, len(order), world_size):
        least_first = sorted(range(world_size), key=lambda r: loads[r])
        for process, row in zip(least_first, order[start : start + world_size]):
            loads[process] += costs[row]
            if process == rank:
                own.append(row)
    return [own[i : i + micro_batch_rows] for i in range(0, len(own), micro_batch_rows)]


class EncodedRows(Dataset[tuple[Packed, tuple[Drop, ...]]]):
    """Item (rows) is their batch, and the samples that could not be encoded."""

    def __init__(self, phases: Sequence[Phase], encoder: RowEncoder, row_tokens: int) -> None:
        self.phases, self.encoder, self.row_tokens = tuple(phases), encoder, row_tokens

    def __getitem__(self, rows: Sequence[PlannedRow]) -> tuple[Packed, tuple[Drop, ...]]:
        """Read, encode and pack."""
        spoiled: list[Drop] = []
        encoded: list[list[Encoded]] = []
        for row in rows:
            found = [self._encode(sample) for sample in row]
            spoiled += [sample for sample in found if isinstance(sample, Drop)]
            encoded.append([sample for sample in found if isinstance(sample, Encoded)])
        return pack(encoded, self.row_tokens, self.encoder.pad_id), tuple(spoiled)

    def _encode(self, planned: Planned) -> Encoded | Drop:
        phase, epoch, index = planned.key
        try:
            conversation, turns = self.phases[phase].mixture.get(epoch, index)
            sample = self.encoder.encode(keep_exchanges(conversation, planned.exchanges), turns)
        except BAD_SAMPLE as error:
            return _spoiled(planned, one_line(error))
        if len(sample.layout) != planned.tokens:
            return _spoiled(planned, f"{len(sample.layout)} tokens where {planned.tokens} were planned")
        labels = {"domain": conversation.domain, "source": planned.source}
        return replace(sample, layout=replace(sample.layout, **labels))


def _spoiled(planned: Planned, reason: str) -> Drop:
    return Drop(planned.key, planned.source, planned.id, "quarantined", reason)


def count_rows(planner: Planner, num_workers: int) -> int:
    """Rows of the first epoch; later epochs differ by the few rows that another packing gives."""
    numbers = itertools.islice(planner.numbers(0, 0, 0), planner.windows_per_epoch(0))
    return sum(len(window.rows) for window in in_workers(PlannedWindows(planner), numbers, num_workers))


class RowLoader:
    """Iterates over the optimiser steps of one process, from a state on, without end."""

    def __init__(
        self,
        planner: Planner,
        config: LoaderConfig,
        *,
        state: LoaderState,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.planner, self.config, self.state = planner, config, state
        self.rank, self.world_size = rank, world_size
        self._own_rows([0] * config.global_batch_rows)  # numbers that do not divide fail here

    def __iter__(self) -> Iterator[StepBatch]:
        """Batches with the patches of this process's rows."""
        self.check_state()
        waiting: deque[StepBatch] = deque()

        def rows() -> Iterator[list[PlannedRow]]:
            for batch, step in self.plans(self.state):
                waiting.append(step)
                own = self._own_rows([sum(sample.vision for sample in row) for row in batch])
                yield from ([batch[i] for i in numbers] for numbers in own)

        num_micro_steps = self.config.global_batch_rows // (self.world_size * self.config.micro_batch_rows)
        planner = self.planner
        dataset = EncodedRows(planner.phases, planner.encoder, planner.config.row_tokens)
        encoded = in_workers(dataset, rows(), self.config.num_workers)
        for first in encoded:
            micro = [first, *itertools.islice(encoded, num_micro_steps - 1)]
            yield replace(
                waiting.popleft(),
                micro_batches=tuple(packed for packed, _ in micro),
                spoiled=tuple(drop for _, spoiled in micro for drop in spoiled),
            )

    def check_state(self) -> None:
        """Plan the last step again; raises UserError when it would not be made of the same samples."""
        state = self.state
        if not state.chain:  # no sample of this data was used yet
            return
        phase, epoch, window, row, chain = state.before
        last = LoaderState(step=state.step - 1, phase=phase, epoch=epoch, window=window, row=row, chain=chain)
        again = next(self.plans(last, ahead=False))[1].next
        if again != state:
            raise explain(
                what=f"step {state.step} would now be made of other samples than it was",
                where="resume (hash chain over sample ids)",
                fix="give back the data, tokenizer and quarantine list that the run began with, or start a new run",
            )

    def plans(
        self, state: LoaderState, *, ahead: bool = True
    ) -> Iterator[tuple[list[PlannedRow], StepBatch]]:
        """All rows of each step from `state` on, and the step without its micro-batches."""
        while True:
            for rows, step in self._plans_of_phase(state, ahead):
                yield rows, step
                state = step.next

    def _plans_of_phase(
        self, state: LoaderState, ahead: bool
    ) -> Iterator[tuple[list[PlannedRow], StepBatch]]:
        """Ends with the phase."""
        planner = self.planner
        phase = phase_at(planner.phases, state.step)
        batch: list[PlannedRow] = []
        opened: list[SampleKey] = []
        dropped: list[Drop] = []
        skip, num_empty = state.row, 0
        numbers = planner.numbers(phase, state.epoch, state.window)
        if phase != state.phase:
            dropped += self._left_over(state)
            skip, numbers = 0, planner.numbers(phase, 0, 0)
        ordered, to_plan = itertools.tee(numbers)
        windows = in_workers(
            PlannedWindows(planner), to_plan, min(1, self.config.num_workers) if ahead else 0
        )
        for (_, epoch, number), window in zip(ordered, windows):
            num_empty = 0 if window.rows else num_empty + 1
            if num_empty > planner.windows_per_epoch(phase):
                raise explain(
                    what=f"no sample of a whole epoch could be used; the last one: {window.dropped[-1]}",
                    where="data loader",
                    fix="look at the reason; an over-long sample needs a larger row_tokens",
                )
            if not skip:  # else the step that opened the window reported it
                opened += [SampleKey(phase, epoch, index) for index in window.opened]
                dropped += window.dropped
            for r in range(skip, len(window.rows)):
                batch.append(window.rows[r])
                if len(batch) < self.config.global_batch_rows:
                    continue
                state = _next(state, batch, (phase, epoch, number, r + 1))
                yield (
                    batch,
                    StepBatch(
                        micro_batches=(),
                        next=state,
                        opened=tuple(opened),
                        planned=tuple(sample for row in batch for sample in row),
                        dropped=tuple(dropped),
                    ),
                )
                if phase_at(planner.phases, state.step) != phase:
                    return
                batch, opened, dropped = [], [], []
            skip = 0

    def _left_over(self, state: LoaderState) -> list[Drop]:
        """What a phase that ended did not come to in its last window."""
        if not state.row:
            return []
        window = self.planner.window(state.phase, state.epoch, state.window)
        return [
            Drop(sample.key, sample.source, sample.id, "dropped", "the phase of the mixture ended")
            for row in window.rows[state.row :]
            for sample in row
        ]

    def _own_rows(self, costs: Sequence[int]) -> list[list[int]]:
        return assign(costs, self.world_size, self.rank, self.config.micro_batch_rows)


def _next(state: LoaderState, batch: Sequence[PlannedRow], place: tuple[int, int, int, int]) -> LoaderState:
    """The state after a step of these rows."""
    phase, epoch, window, row = place
    ids = sorted(f"{sample.source}/{sample.id}" for row in batch for sample in row)
    return LoaderState(
        step=state.step + 1,
        phase=phase,
        epoch=epoch,
        window=window,
        row=row,
        chain=digest(state.chain, *ids),
        before=(state.phase, state.epoch, state.window, state.row, state.chain),
    )
