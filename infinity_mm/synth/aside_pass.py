"""Pass `aside`: the samples that a finished run set aside or dropped for a reason, as they entered that stage.

RUN dropped + quarantined rows of `journeys` --reason, stage--> samples, whole images per unit, entries.json
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, final

from infinity_mm.errors import explain
from infinity_mm.record import Emitted, Sample, canonical_json, digest, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.synth.ids import image_id
from infinity_mm.synth.journey_pass import ENTRIES_FILE
from infinity_mm.synth.stages import JourneyConfig


@dataclass(frozen=True, kw_only=True)
class Aside:
    """Which samples of which run."""

    run_dir: str
    """The finished run."""
    reason: str
    """As counted in its summary: http_503, score_low, ..."""
    stage: str | None = None
    """Only those that ended at this stage."""
    start: str | None = None
    """Go on from this earlier stage instead of the one at which each ended."""


@final
@dataclass(frozen=True, kw_only=True)
class AsidePass:
    """Stands where `read`, `unique`, `tag` and `plan` stand in a run from images."""

    aside: Aside
    config: JourneyConfig
    name: str = "aside"

    def fingerprint(self) -> str:
        """What is taken, and from what output of that run."""
        return digest(self.name, *edition_parts(self.aside))

    def units(self, run: Run) -> Sequence[Unit]:
        """As many images in each as a shard of journeys holds."""
        rows = sorted(rows_of(self.aside), key=lambda row: row["id"])
        if not rows:
            raise explain(
                what=f"no sample ended with the reason `{self.aside.reason}`"
                + (f" at stage `{self.aside.stage}`" if self.aside.stage else ""),
                where=self.aside.run_dir,
                fix=f"its journeys know these reasons: {', '.join(known_reasons(self.aside)) or 'none'}",
            )
        images = [list(group) for _, group in groupby(rows, key=lambda row: image_id(row["id"]))]
        step = self.config.images_per_shard
        return [
            Unit(id=f"{number:05d}", payload=[row for image in images[at : at + step] for row in image])
            for number, at in enumerate(range(0, len(images), step))
        ]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _AsideWorker(self, run)


@final
class _AsideWorker:
    def __init__(self, pass_: AsidePass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        """The samples of the unit, and where each goes on."""
        before = Run(self._pass.aside.run_dir)
        samples: list[Sample] = []
        entries: dict[str, str] = {}
        for row in unit.payload:
            sample = as_it_entered(Sample.from_json(canonical_json(row["sample"])), row["stage"])
            for image in sample.images:
                if not before.images.is_elsewhere(image):  # it lies in the old run's own store
                    self._run.store_image(before.images.read(image))
            samples.append(sample)
            entries[sample.id] = entry(sample, row["stage"], self._pass.aside.start, self._pass.config.stages)
        ids = [sample.id for sample in samples]
        return UnitResult(
            input_ids=ids,
            samples=samples,
            fates=settle(self._pass.name, ids, [Emitted(sample=sample) for sample in samples]),
            files={ENTRIES_FILE: canonical_json(entries).encode()},
        )


def edition_parts(aside: Aside) -> tuple[str, ...]:
    """What tells one replay of a run from another; nothing in it depends on where the run lies."""
    committed = Run(aside.run_dir).manifest("journeys")
    if committed is None:
        raise explain(
            what="the journeys of this run are not committed",
            where=aside.run_dir,
            fix="finish the run first: run its command again",
        )
    return (committed.content, aside.reason, aside.stage or "", aside.start or "")


def edition(aside: Aside) -> str:
    """Part of the ids of a replay's conversations."""
    return f"r{digest('edition', *edition_parts(aside))[:6]}"


def rows_of(aside: Aside) -> Iterator[dict[str, Any]]:
    """Rows of the samples that are meant; an image without a planned type is no question and is left out."""
    for row in _all_rows(aside):
        if row["reason"] == aside.reason and aside.stage in (None, row["stage"]):
            yield row


def known_reasons(aside: Aside) -> list[str]:
    """`reason (stage)` of everything that could be replayed."""
    return sorted({f"{row['reason']} ({row['stage']})" for row in _all_rows(aside)})


def _all_rows(aside: Aside) -> Iterator[dict[str, Any]]:
    run = Run(aside.run_dir)
    for rows in (run.dropped("journeys"), run.quarantined("journeys")):
        yield from (row for row in rows if row["stage"] != "spread")


def as_it_entered(sample: Sample, stage: str) -> Sample:
    """Undo what the stage that set it aside had written; other fields are written again by their stages."""
    if stage == "rewrite" and sample.previous:
        answer, score = sample.previous[0]
        return replace(sample, answer=answer, score=score, decision="rewrite", previous=())
    return sample


def entry(sample: Sample, stage: str, start: str | None, stages: Sequence[str]) -> str:
    """The stage at which a sample goes on."""
    begin = start or stage
    if begin not in stages:
        raise explain(
            what=f"the configuration has no stage `{begin}`",
            where="stages (configuration), --from",
            fix=f"one of {', '.join(stages)}",
        )
    if stage in stages and stages.index(begin) > stages.index(stage):
        raise explain(
            what=f"{sample.id} ended at `{stage}` and cannot go on at `{begin}`, which comes later",
            where="--from",
            fix=f"leave --from out, or name `{stage}` or a stage before it",
        )
    if sample.style is not None and "styles" in stages and stages.index(begin) <= stages.index("styles"):
        raise explain(
            what=f"{sample.id} is a question in one style, and `{begin}` comes before styles are told apart",
            where="--from",
            fix="name a stage after `styles`",
        )
    return begin
