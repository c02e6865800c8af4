"""What a finished run made of each of its images: every question and pair with its end, all passes counted in.

pairs of `journeys` --less what cap, dedup, repeats, publish took out--> kept \\
dropped and quarantined of `journeys`, and what was taken out ---------> ended --> image hash -> Work
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from infinity_mm.errors import explain
from infinity_mm.record import ImageRef, Sample, canonical_json
from infinity_mm.runtime.run import Run
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.ids import image_id, is_source
from infinity_mm.synth.journey_pass import PAIRS_FILE
from infinity_mm.synth.outtake import REASONS, taken_out
from infinity_mm.synth.publish_pass import SIMULATED


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One question or pair with its end, for the page."""

    question: str
    answer: str
    type: str
    style: str
    score: float | None
    end: str
    """`kept`, or stage and reason."""


@dataclass(kw_only=True)
class Work:
    """What a run made of one image."""

    image: ImageRef
    kept: list[Shown] = field(default_factory=list)
    ended: list[Shown] = field(default_factory=list)
    is_simulated: bool = False
    """Whether no model said any of it; `kept` is then what would have been."""


def read_run(run_dir: str) -> dict[str, Work]:
    """Image hash -> its work; raises `UserError` for a run that is not finished."""
    run = Run(run_dir)
    if run.manifest("publish") is None:
        raise explain(
            what="this run is not finished: its pass `publish` is not committed",
            where=run_dir,
            fix="finish the run first: run its command again",
        )
    works: dict[str, Work] = {}
    for sample, end in _ends(run):
        work = works.setdefault(sample.images[0].sha256, Work(image=sample.images[0]))
        (work.kept if end == "kept" else work.ended).append(_shown(sample, end))
        work.is_simulated |= sample.is_simulated
    return works


def _ends(run: Run) -> Iterator[tuple[Sample, str]]:
    later = _ended_later(run)
    committed = run.manifest("journeys")
    for unit in () if committed is None else committed.units:
        for line in read_jsonl(run.read_file("journeys", unit, PAIRS_FILE)):
            yield Sample.from_json(canonical_json(line["sample"])), later.get(line["id"], "kept")
    for rows in (run.dropped("journeys"), run.quarantined("journeys")):
        for row in rows:
            if row.get("sample") and image_id(row["id"]) != row["id"] and not is_source(row["id"]):
                sample = Sample.from_json(canonical_json(row["sample"]))
                yield sample, f"{row['stage']}: {row['reason']}"


def _ended_later(run: Run) -> dict[str, str]:
    """Pair -> how it ended after the journeys: taken out of its conversation, or gone with it."""
    found = {id_: f"{name}: {REASONS[name]}" for id_, name in taken_out(run).items()}
    gone = {
        line.id: f"{line.stage}: {line.reason or line.fate}"
        for name in ("dedup", "publish")
        for line in run.ledger(name)
        if line.fate in ("merged", "dropped", "quarantined") and line.reason != SIMULATED
    }
    for sample in run.samples("journeys") if gone else ():
        for id_ in sample.parents if sample.id in gone else ():
            found.setdefault(id_, gone[sample.id])
    return found


def _shown(sample: Sample, end: str) -> Shown:
    return Shown(
        question=sample.question or "",
        answer=sample.answer or "",
        type=sample.instruction_type or "",
        style=sample.style or "",
        score=None if sample.score is None else sample.score.value,
        end=end,
    )
