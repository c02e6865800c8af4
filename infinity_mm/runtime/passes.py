"""The pass contract: a resumable step over the whole set with its own committed output.

units --PassWorker.run--> UnitResult --commit--> shard + ledger + dropped + quarantine, then one manifest entry
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from infinity_mm.record import Fate, Sample

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The input of one work shard: read, worked and written by one worker."""

    id: str
    """Unique within the pass and the same in every run: `00000`, `00001`, ..."""
    payload: Any
    """JSON-able; what the worker needs to find its input."""


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What one unit became."""

    input_ids: Sequence[str]
    """Ids that came in: what the ledger must account for."""
    samples: Sequence[Sample]
    """Ids that go on to the next pass."""
    fates: Sequence[Fate]
    """One per stage and id, the stages of an id in order; its last one decides what became of it in this pass."""
    dropped: Sequence[Mapping[str, Any]] = ()
    """One row for every id whose last fate is `dropped`: at least id, stage, reason, and the record."""
    quarantined: Sequence[Mapping[str, Any]] = ()
    """One row for every id whose last fate is `quarantined`: at least id, stage, reason, error."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Counts and seconds, which mean something when added up over units: no rates."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Other committed outputs of the unit by name (a plan, a fitted mapping, published Parquet)."""


@runtime_checkable
class PassWorker(Protocol):
    """Lives in one worker process and works units one after the other, or several at once."""

    async def run(self, unit: Unit) -> UnitResult:
        """Work one unit."""
        ...


@runtime_checkable
class Pass(Protocol):
    """A picklable description of one pass."""

    @property
    def name(self) -> str:
        """Unique within the run; part of file names."""
        ...

    def fingerprint(self) -> str:
        """Hash of all configuration that decides the output; a committed pass is only reused if it is equal."""
        ...

    def units(self, run: Run) -> Sequence[Unit]:
        """The same units in the same order whenever asked; called on the driver."""
        ...

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Open models and files in a worker process; closed when the worker ends."""
        ...
