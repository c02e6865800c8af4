"""The stage contract: the samples of one image in, one list of outcomes out.

Sample* --Stage.run--> Outcome* --settle--> Fate*   (the conservation law, checked at every stage)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from infinity_mm.engines.base import Engine
from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Outcome, Sample


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a stage may look at besides its samples."""

    engines: Mapping[str, Engine]
    """By role: `teacher` asks, checks, answers and rewrites; `judge` scores."""
    prompts: PromptSet
    seed: int
    """The run's seed; draws depend on it, the stage and the sample id alone."""


@runtime_checkable
class Stage(Protocol):
    """One step of a journey; looks at nothing outside its image and the plan."""

    name: str
    reads: frozenset[str]
    """Fields of `Sample` that must be written before."""
    writes: frozenset[str]
    """Fields of `Sample` that it writes."""

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One fate for every sample; see `record.settle`."""
        ...


def check_wiring(stages: Sequence[Stage], *, start: frozenset[str]) -> None:
    """Raise `UserError` if a stage reads a field that no earlier stage writes."""
    written = set(start)
    for stage in stages:
        missing = sorted(stage.reads - written)
        if missing:
            raise explain(
                what=f"stage `{stage.name}` reads {', '.join(missing)}, which nothing before it writes",
                where="stages (configuration)",
                fix=f"put a stage that writes it before `{stage.name}`",
            )
        written |= stage.writes
