"""Pass `publish` (P4): the conversations that stayed, cut into files for others.

units of `dedup` grouped by rows --+ pairs of `journeys`, image bytes--> train-00000-of-00002.parquet, ...

What a simulated run made up goes the same way to its last step and is dropped there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from infinity_mm.config import to_plain
from infinity_mm.errors import explain
from infinity_mm.record import Dropped, Emitted, Outcome, Quarantined, Sample, canonical_json, digest, settle
from infinity_mm.runtime.ledger import fate_counts
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.synth.exchange import drop
from infinity_mm.synth.ids import is_source
from infinity_mm.synth.journey_pass import read_pairs, set_aside
from infinity_mm.synth.publish import parquet_bytes, row
from infinity_mm.synth.repeats_pass import NAME as REPEATS
from infinity_mm.synth.repeats_pass import with_repeats
from infinity_mm.vision.images import BadImage

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

NAME = "publish"
SIMULATED = "simulated"
"""Why a made-up row is dropped."""


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """How the data set is cut."""

    rows_per_file: int = 2000
    """A file is closed when it has so many rows; it is built in memory, images included."""

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            raise explain(
                what=f"rows_per_file={self.rows_per_file}",
                where="PublishConfig (YAML section `publish`)",
                fix="set publish.rows_per_file to at least 1, usually 1000 to 10000",
            )


@final
@dataclass(frozen=True, kw_only=True)
class PublishPass:
    """P4: Parquet with images inside."""

    config: PublishConfig = field(default_factory=PublishConfig)
    after: str = "dedup"
    """The pass whose samples are published."""
    journeys: str = "journeys"
    """The pass, cut into the same units, that wrote the pairs of each conversation."""
    is_simulated: bool = False
    """Whether the run is a simulated one: then no row goes out, though what came with an image be real."""
    name: str = NAME

    def fingerprint(self) -> str:
        """Configuration."""
        return digest(
            self.name,
            self.after,
            self.journeys,
            canonical_json(to_plain(self.config)),
            SIMULATED if self.is_simulated else "",
        )

    def units(self, run: Run) -> Sequence[Unit]:
        """One per file, each of whole units of the pass before; a file without rows if there is nothing."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        groups: list[list[str]] = [[]]
        num_rows = 0
        for unit in manifest.units:
            if num_rows >= self.config.rows_per_file:
                groups.append([])
                num_rows = 0
            groups[-1].append(unit)
            num_rows += run.num_samples(self.after, unit)
        return [
            Unit(
                id=f"{number:05d}",
                payload={"units": group, "file": f"train-{number:05d}-of-{len(groups):05d}.parquet"},
            )
            for number, group in enumerate(groups)
        ]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _PublishWorker(self, run)


@final
class _PublishWorker:
    def __init__(self, pass_: PublishPass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        """Read, build and compress in a thread."""
        return await asyncio.to_thread(self._work, unit.payload["units"], unit.payload["file"])

    def _work(self, units: Sequence[str], file: str) -> UnitResult:
        samples = [sample for unit in units for sample in self._run.unit_samples(self._pass.after, unit)]
        samples.sort(key=lambda sample: sample.id)
        pairs = {pair.id: pair for unit in units for pair in self._pairs(unit)}
        rows: list[dict[str, Any]] = []
        outcomes: list[Outcome] = []
        for sample in samples:
            try:
                told = [pairs[id_] for id_ in sample.parents if not is_source(id_)]
                made = row(sample, told, self._run.images)
                if self._pass.is_simulated or sample.is_simulated:
                    outcomes.append(drop(sample, self._pass.name, SIMULATED))
                else:
                    rows.append(made)
                    outcomes.append(Emitted(sample=sample))
            except BadImage as bad:  # the file was removed or replaced since it was read first
                outcomes.append(
                    Quarantined(
                        id=sample.id, stage=self._pass.name, reason=bad.reason, error=str(bad), sample=sample
                    )
                )
        ids = [sample.id for sample in samples]
        data = parquet_bytes(rows)
        return UnitResult(
            input_ids=ids,
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=settle(self._pass.name, ids, outcomes),
            dropped=[set_aside(outcome) for outcome in outcomes if isinstance(outcome, Dropped)],
            quarantined=[set_aside(outcome) for outcome in outcomes if isinstance(outcome, Quarantined)],
            metrics={"rows": len(rows), "bytes": len(data)},
            files={file: data},
        )

    def _pairs(self, unit: str) -> list[Sample]:
        pairs = read_pairs(self._run, self._pass.journeys, unit)
        return with_repeats(self._run, unit, pairs) if self._pass.after == REPEATS else pairs


def refuse_simulated(run: Run) -> None:
    """Raise `UserError` where the run's replies were made up: nothing of it may leave the run directory."""
    manifest = run.manifest(NAME)
    if manifest is None or not any(reason == SIMULATED for _, _, reason, _ in fate_counts(manifest.totals)):
        return
    raise explain(
        what="this run was simulated: no model said any of it",
        where=run.run_dir,
        fix="run it again in a new run_dir with journal: record",
    )
