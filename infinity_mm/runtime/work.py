"""One unit in a worker: run it, check it, write it, commit it; only counts go back to the driver.

Unit --PassWorker.run--> UnitResult --settle_unit--> ledger lines --commit_unit--> entry --> Done
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

from infinity_mm.record import canonical_json
from infinity_mm.runtime.budget import BudgetConfig
from infinity_mm.runtime.ledger import ledger_bytes, settle_unit
from infinity_mm.runtime.link import Link, Report
from infinity_mm.runtime.passes import Pass, PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import Entry, commit_unit
from infinity_mm.storage.shards import jsonl_bytes, shard_bytes

UNITS_IN_FLIGHT = 2
"""Units a worker has open at once, so that the tail of one does not leave its engine idle."""


@dataclass(frozen=True, kw_only=True)
class PassWork:
    """What a worker needs to know besides the unit."""

    pass_: Pass
    run: Run
    generation: str
    """Under which its units are committed; see `storage.manifest`."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Kept by the driver; a worker needs to know how to reckon."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A committed unit."""

    unit: str
    counts: Mapping[str, int]
    seconds: float
    """From the start of the work to the commit, other open units of the worker included."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the unit counted besides."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A unit that could not be committed."""

    unit: str
    error: Exception
    """What was raised, with the unit in a note."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A second passed without news: workers are loading, or wait for a place in the cluster."""


Outcome = Done | Failed | Report | Waiting


def commit_result(work: PassWork, unit: Unit, result: UnitResult, seconds: float) -> Entry:
    """Check one result against the conservation law, write its objects, commit it."""
    lines, counts = settle_unit(work.pass_.name, unit.id, result)
    metrics = {**result.metrics, "unit_seconds": seconds}
    objects = {
        "shard": shard_bytes(result.samples),
        "ledger": ledger_bytes(lines),
        "metrics": canonical_json(metrics).encode(),
    }
    if result.dropped:
        objects["dropped"] = jsonl_bytes(result.dropped)
    if result.quarantined:
        objects["quarantined"] = jsonl_bytes(result.quarantined)
    for name, data in result.files.items():
        objects[f"file/{name}"] = data
    return commit_unit(
        work.run.run_dir,
        pass_name=work.pass_.name,
        unit=unit.id,
        generation=work.generation,
        objects=objects,
        counts=counts,
    )


@final
class OpenWorker:
    """A pass worker held open, from `open` to `close`, in one task: what was entered in a task must be left in it."""

    def __init__(self, work: PassWork) -> None:
        self._work = work
        self._stop = asyncio.Event()
        self.link = Link(image_tokens=work.budget.image_tokens)

    async def open(self) -> None:
        """Open models and files."""
        ready: asyncio.Future[PassWorker] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(ready))
        await asyncio.wait((ready, self._holder), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await self._holder  # raises what opening raised
            raise RuntimeError(f"pass {self._work.pass_.name}: open() ended without giving a worker")
        self._worker = ready.result()

    async def close(self) -> None:
        """Close them; raises what closing raises."""
        self._stop.set()
        try:
            await self._holder
        finally:
            self.link.close()

    async def work(self, unit: Unit) -> Done | Failed:
        """Work and commit one unit."""
        start = time.monotonic()
        try:
            result = await self._worker.run(unit)
            # In a thread: compressing, writing and syncing would keep the other open unit from its engine.
            seconds = time.monotonic() - start
            entry = await asyncio.to_thread(commit_result, self._work, unit, result, seconds)
        except Exception as error:
            error.add_note(f"while working unit {unit.id} of pass {self._work.pass_.name}")
            return Failed(unit=unit.id, error=error)
        finally:
            self.link.forget(unit.id)
        seconds = time.monotonic() - start
        return Done(unit=unit.id, counts=entry.counts, seconds=seconds, metrics=result.metrics)

    async def _hold(self, ready: asyncio.Future[PassWorker]) -> None:
        async with self._work.pass_.open(replace(self._work.run, link=self.link)) as worker:
            ready.set_result(worker)
            await self._stop.wait()
