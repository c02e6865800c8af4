"""What to do with a step whose loss is not finite or jumps, before the optimiser is touched.

loss, gradient norm --problem--> None: step | text: stop, leave out, or leave out and go back to the last copy
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from infinity_mm.data.plan import Drop, Planned
from infinity_mm.training.config import SpikeConfig
from infinity_mm.training.sharding import own_part, set_own_part


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """A step that the optimiser left out."""

    problem: str
    """What was wrong with it."""
    losses: dict[tuple[str, str], float]
    """(source, id) of its samples -> mean loss of each, of all processes."""

    def fates(self, planned: Iterable[Planned], spoiled: Collection[Drop], *, quarantine: bool) -> list[Drop]:
        """What becomes of the samples that were read. All of them share one fate: a gradient is a sum, and a sample can
        ruin it with a loss like any other. Each reason ends with the sample's own loss, for whoever looks."""
        unread = {drop.key for drop in spoiled}
        return [
            Drop(
                sample.key,
                sample.source,
                sample.id,
                "quarantined" if quarantine else "dropped",
                f"step left out: {self.problem}; own loss {self.losses.get((sample.source, sample.id), math.nan):.4f}",
            )
            for sample in planned
            if sample.key not in unread
        ]


@final
class Guard:
    """Judges steps by the losses before them; every process comes to the same verdict."""

    def __init__(
        self, config: SpikeConfig, optimizer: torch.optim.Optimizer, recent_losses: Sequence[float]
    ) -> None:
        self._config, self._optimizer = config, optimizer
        self._recent = deque(recent_losses, maxlen=config.window)
        self._bad_in_a_row = 0
        self._copies: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        if config.action == "rewind":
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._copies = [(p, _copied(p), {}) for p in parameters]
            self._copy()

    @property
    def recent_losses(self) -> tuple[float, ...]:
        """The losses the next one is compared with; part of a checkpoint, so that a resumed run judges alike."""
        return tuple(self._recent)

    def problem(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step, or None."""
        if not math.isfinite(loss + grad_norm):
            return f"loss {loss}, gradient norm {grad_norm}"
        factor = self._config.factor
        if factor is not None and len(self._recent) == self._config.window:
            usual = statistics.median(self._recent)
            if loss > factor * usual:
                return (
                    f"loss {loss:.4f}, more than {factor:g} times {usual:.4f}, the median of the last steps"
                )
        return None

    def passed(self, step: int, loss: float) -> None:
        """Step `step` was good and is done."""
        self._recent.append(loss)
        self._bad_in_a_row = 0
        if self._config.action == "rewind" and step % self._config.snapshot_every_steps == 0:
            self._copy()

    def must_stop(self) -> bool:
        """Called for every bad step, which is then left out unless the answer is yes; goes back if so configured."""
        self._bad_in_a_row += 1
        if self._config.action == "stop" or self._bad_in_a_row >= self._config.max_in_a_row:
            return True
        if self._config.action == "rewind":
            self._go_back()
        return False

    def _copy(self) -> None:
        """Bring the copies in CPU memory of all trained weights and of the optimiser's state up to date, in place:
        there is no room for two."""
        for parameter, weights, state in self._copies:
            weights.copy_(own_part(parameter))
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if key in state:
                    state[key].copy_(own_part(value))
                else:  # the optimiser makes its state in its first step
                    state[key] = _copied(value)

    def _go_back(self) -> None:
        for parameter, weights, state in self._copies:
            set_own_part(parameter, weights)
            if not state:  # before the first step there was none
                self._optimizer.state.pop(parameter, None)
            for key, value in state.items():
                own_part(self._optimizer.state[parameter][key]).copy_(value)


def _copied(tensor: Tensor) -> Tensor:
    return own_part(tensor).to("cpu", copy=True)
