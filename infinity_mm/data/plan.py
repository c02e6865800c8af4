"""Which samples share a row, decided from measurements alone, for one window of samples after the other.

phase, epoch, window --permute--> samples --measured--> costs --balanced_fit--> rows of the window, fates of the rest

A window is a pure function of its number, so that a run goes on anywhere at once, in memory of one window, and every
process plans the same rows whatever their number. No image is decoded here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from infinity_mm.data.encode import OverLong, RowEncoder
from infinity_mm.data.index import LiveIndex
from infinity_mm.data.measure import Measured, one_line
from infinity_mm.data.mixture import Mixture, Phase
from infinity_mm.data.packing import balanced_fit
from infinity_mm.data.permutation import permute
from infinity_mm.data.quarantine import Quarantine
from infinity_mm.errors import UserError, explain
from infinity_mm.record import seed_for


class SampleKey(NamedTuple):
    """One use of one sample."""

    phase: int
    epoch: int
    index: int
    """In the mixture of the phase."""


class Planned(NamedTuple):
    """A sample in its row."""

    key: SampleKey
    source: str
    id: str
    exchanges: int
    """How many of its exchanges are used."""
    tokens: int
    """Positions it takes."""
    vision: int
    """The vision tower's work for it."""


PlannedRow = tuple[Planned, ...]


class Drop(NamedTuple):
    """One use of a sample that was not trained on."""

    key: SampleKey
    source: str
    id: str
    fate: Literal["dropped", "quarantined"]
    """`dropped`: by a policy; `quarantined`: something is wrong with it."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """How samples become rows."""

    row_tokens: int
    """Positions of one row."""
    row_vision: int | None = None
    """Most work of the vision tower for one row, in the unit of `vision_cost`; None: no limit."""
    window: int = 4096
    """Samples packed together."""
    over_long: OverLong = "drop"
    """What happens to a sample that does not fit a row."""
    seed: int = 0
    """Seed of the order of samples and rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """All rows of one window."""

    opened: tuple[int, ...]
    """Mixture indices of all its samples."""
    rows: tuple[PlannedRow, ...]
    dropped: tuple[Drop, ...]


def num_patches(rows: int, columns: int) -> int:
    """The plainest `vision_cost`: the patches of a view."""
    return rows * columns


class Planner:
    """Plans windows; can be sent to worker processes."""

    def __init__(
        self,
        phases: Sequence[Phase],
        encoder: RowEncoder,
        config: PlanConfig,
        *,
        vision_cost: Callable[[int, int], int] = num_patches,
        quarantine: Quarantine | None = None,
    ) -> None:
        """`vision_cost`: what a view of so many rows and columns of patches costs the vision tower."""
        self.phases, self.encoder, self.config = tuple(phases), encoder, config
        self.vision_cost = vision_cost
        self.quarantine = quarantine or Quarantine()
        self._image_costs = lru_cache(maxsize=1 << 16)(self._new_image_costs)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_image_costs"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._image_costs = lru_cache(maxsize=1 << 16)(self._new_image_costs)

    def windows_per_epoch(self, phase: int) -> int:
        """Number of windows, the last one may be smaller."""
        return -(-len(self.phases[phase].mixture) // self.config.window)

    def numbers(self, phase: int, epoch: int, window: int) -> Iterator[tuple[int, int, int]]:
        """(phase, epoch, window) from a window on, without end."""
        while True:
            yield phase, epoch, window
            window += 1
            if window == self.windows_per_epoch(phase):
                epoch, window = epoch + 1, 0

    def window(self, phase: int, epoch: int, number: int) -> Window:
        """Measure, decide and pack the samples of one window."""
        mixture = self.phases[phase].mixture
        order_key = seed_for(self.config.seed, "sample-order", f"{phase}/{epoch}")
        start = number * self.config.window
        places = np.arange(start, min(start + self.config.window, len(mixture)))
        indices = permute(places, len(mixture), order_key)
        planned: list[Planned] = []
        dropped: list[Drop] = []
        for index, (source, sample) in zip(indices.tolist(), self._measured(mixture, epoch, indices)):
            key = SampleKey(phase, epoch, index)
            fit = self._fate(source, sample)
            if isinstance(fit, Fit):
                planned.append(Planned(key, source, sample.id, fit.exchanges, fit.tokens, fit.vision))
            else:
                dropped.append(Drop(key, source, sample.id, *fit))
        rows = [[place] for place in range(len(planned))]
        if self.encoder.packs:
            rows = balanced_fit(
                [sample.tokens for sample in planned],
                self.config.row_tokens,
                [sample.vision for sample in planned],
                self.config.row_vision,
            )
        # Else long samples would all come first.
        random.Random(seed_for(self.config.seed, "row-order", f"{phase}/{epoch}/{number}")).shuffle(rows)
        return Window(
            opened=tuple(indices.tolist()),
            rows=tuple(tuple(planned[i] for i in row) for row in rows),
            dropped=tuple(dropped),
        )

    def _measured(self, mixture: Mixture, epoch: int, indices: np.ndarray) -> Iterator[tuple[str, Measured]]:
        """(name of the source, measurements) of the samples."""
        numbers, inner = mixture.locate(epoch, indices)
        found: list[tuple[str, Measured] | None] = [None] * len(indices)
        for number in np.unique(numbers).tolist():
            part = mixture.parts[number]
            here = np.flatnonzero(numbers == number)
            index = part.index or LiveIndex(part.source, self.encoder)
            for place, sample in zip(here.tolist(), index.take(inner[here])):
                found[place] = (part.name, sample)
        return (entry for entry in found if entry is not None)

    def _fate(self, source: str, sample: Measured) -> Fit | tuple[Literal["dropped", "quarantined"], str]:
        """What of the sample is used, or why it is not."""
        if (source, sample.id) in self.quarantine.reasons:
            return "quarantined", f"listed: {self.quarantine.reasons[source, sample.id]}"
        if sample.problem is not None:
            return "quarantined", sample.problem
        if not sample.tokens:
            return "dropped", "no messages"
        try:
            whole = self._fit(sample, len(sample.tokens) - 1)
            if self._in_budget(whole):
                return whole
            if self.config.over_long == "error":
                raise explain(
                    what=f"sample {sample.id} of `{source}` has {whole.tokens} tokens, a row "
                    f"{self.config.row_tokens}{self._vision_part(whole)}",
                    where="data loader (over_long: error)",
                    fix="raise row_tokens, or set over_long: drop or truncate_turns",
                )
            if self.config.over_long == "truncate_turns":
                for exchanges in range(whole.exchanges - 1, 0, -1):
                    fit = self._fit(sample, exchanges)
                    if self._in_budget(fit):
                        return fit
        except ImageRefused as error:
            return "dropped", f"image refused: {error}"
        return "dropped", f"over-long: {whole.tokens} tokens{self._vision_part(whole)}"

    def _fit(self, sample: Measured, exchanges: int) -> Fit:
        """What the first exchanges cost. A cut never goes through an exchange, so neither through an image."""
        images = self._image_costs(sample.image_sizes[: sum(sample.images[: exchanges + 1])])
        tokens = sum(sample.tokens[: exchanges + 1]) + sum(tokens for tokens, _ in images)
        return Fit(exchanges, tokens, sum(vision for _, vision in images))

    def _vision_part(self, fit: Fit) -> str:
        return "" if self.config.row_vision is None else f", vision {fit.vision} of {self.config.row_vision}"

    def _in_budget(self, fit: Fit) -> bool:
        row_vision = self.config.row_vision
        return fit.tokens <= self.config.row_tokens and (row_vision is None or fit.vision <= row_vision)

    def _new_image_costs(self, sizes: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
        """(tokens, vision work) of the images of one sample; how one is cut may depend on how many there are."""
        try:
            costs = self.encoder.image_costs(sizes)
        except UserError as error:
            raise ImageRefused(one_line(error)) from error
        return [(cost.tokens, sum(self.vision_cost(*shape) for shape in cost.view_shapes)) for cost in costs]


class ImageRefused(Exception):  # noqa: N818 (a fact about a sample, not a programming error)
    """An image of a size that the model does not take."""


class Fit(NamedTuple):
    """The first exchanges of a sample and what they cost."""

    exchanges: int
    tokens: int
    vision: int


class PlannedWindows(Dataset[Window]):
    """Item (phase, epoch, window) is that window."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner

    def __getitem__(self, index: tuple[int, int, int]) -> Window:
        return self.planner.window(*index)
