"""What a run has made of each picture so far, whether it has ended or not.

run directory --committed units--> rows (kept, dropped, set aside) --by picture, by question--> Picture*
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infinity_mm.record import ImageRef, Sample, Score, canonical_json
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files, manifest
from infinity_mm.storage.manifest import Entry
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.ids import question_id
from infinity_mm.synth.journey_pass import PAIRS_FILE
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.taxonomy.plan_pass import PLAN_FILE

KEPT, REPAIRED, DROPPED, FAILED = "kept", "repaired", "dropped", "failed"
"""What became of an answer (or of a question, which is never `repaired`)."""


@dataclass(frozen=True, kw_only=True)
class End:
    """Where and why something ended."""

    stage: str
    reason: str
    error: str = ""
    """What was raised or said, of a call or reply that failed."""
    is_failure: bool = False
    """Whether a call or a reply failed, as opposed to a decision against the sample."""


@dataclass(frozen=True, kw_only=True)
class AnswerView:
    """One answer in one style."""

    style: str
    text: str
    """The last version."""
    fate: str
    """kept, repaired, dropped or failed."""
    score: float | None = None
    """Of the last version that was judged, 1 to 10."""
    before: str | None = None
    """The answer that a repair replaced, or tried to."""
    score_before: float | None = None
    end: End | None = None


@dataclass(kw_only=True)
class QuestionView:
    """One planned question."""

    type: str
    text: str = ""
    """Empty until it is written; of one that was dropped while asking, the whole reply."""
    end: End | None = None
    """Set if it ended before it was answered."""
    answers: list[AnswerView] = field(default_factory=list)


@dataclass(kw_only=True)
class Picture:
    """One picture and what was made of it."""

    image: ImageRef
    tags: tuple[str, ...] = ()
    questions: list[QuestionView] = field(default_factory=list)
    end: End | None = None
    """Set if it ended before anything was asked."""
    is_worked: bool = False
    """Whether its journey is committed."""


def collect(run: Run) -> list[Picture]:
    """All different pictures of a run in id order; of a run that was stopped, as far as it is committed."""
    pictures = {sample.id: _picture(sample) for sample in _latest_samples(run)}
    for row in _pass_drops(run):
        if row["sample"] is not None and row["id"] in pictures:
            pictures[row["id"]].end = End(stage=row["stage"], reason=row["reason"])
    for id_, entries in _plan(run).items():
        if id_ in pictures:
            pictures[id_].questions = [QuestionView(type=entry["type"]) for entry in entries]
    for id_, rows in _journey_rows(run).items():
        if id_ in pictures:
            pictures[id_].is_worked = True
            _fill(pictures[id_], id_, rows)
    return [pictures[id_] for id_ in sorted(pictures)]


def _latest_samples(run: Run) -> Iterator[Sample]:
    """With tags where they were given; else as `unique` made them."""
    found: dict[str, Sample] = {}
    for name in ("unique", "tag"):
        if run.manifest(name) is not None:
            found |= {sample.id: sample for sample in run.samples(name)}
    yield from found.values()


def _picture(sample: Sample) -> Picture:
    return Picture(image=sample.images[0], tags=tuple(tag.name for tag in sample.tags or ()))


def _pass_drops(run: Run) -> Iterator[Mapping[str, Any]]:
    for name in ("tag", "plan"):
        if run.manifest(name) is not None:
            yield from run.dropped(name)


def _plan(run: Run) -> Mapping[str, Any]:
    manifest = run.manifest("plan")
    plan: dict[str, Any] = {}
    for unit in manifest.units if manifest else ():
        plan |= json.loads(run.read_file("plan", unit, PLAN_FILE))
    return plan


@dataclass(frozen=True, kw_only=True)
class _Row:
    sample: Sample
    end: End | None


def _journey_rows(run: Run) -> dict[str, list[_Row]]:
    """Image id -> its rows. A unit that an interrupted call committed counts, the newest for each image."""
    found: dict[str, list[_Row]] = {}
    for entry in _journey_entries(run):
        rows = list(_rows(run, entry))
        by_image: dict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            by_image[row.sample.images[0].sha256[:16]].append(row)
        found |= {id_: group for id_, group in by_image.items() if id_ not in found}
    return found


def _journey_entries(run: Run) -> list[Entry]:
    committed = run.manifest("journeys")
    if committed is not None:
        return list(manifest.entries(run.run_dir, committed))
    folder = run.path("manifest", "journeys")
    generations = [name for name in files.names(folder) if os.path.isdir(os.path.join(folder, name))]
    newest_first = sorted(generations, key=lambda name: -os.path.getmtime(os.path.join(folder, name)))
    return [
        manifest.read_entry(run.run_dir, "journeys", generation, unit)
        for generation in newest_first
        for unit in sorted(manifest.committed_units(run.run_dir, "journeys", generation))
    ]


def _rows(run: Run, entry: Entry) -> Iterator[_Row]:
    for kind in (f"file/{PAIRS_FILE}", "dropped", "quarantined"):
        if kind not in entry.objects:
            continue
        for line in read_jsonl(manifest.read_object(run.run_dir, entry.objects[kind])):
            if line["sample"] is None:
                continue
            end = None
            if kind in ("dropped", "quarantined"):
                end = End(
                    stage=line["stage"],
                    reason=line["reason"],
                    error=line.get("error", ""),
                    is_failure=kind == "quarantined",
                )
            yield _Row(sample=Sample.from_json(canonical_json(line["sample"])), end=end)


def _fill(picture: Picture, image_id: str, rows: list[_Row]) -> None:
    places = {question_id(image_id, number): question for number, question in enumerate(picture.questions)}
    for row in rows:
        sample = row.sample
        is_answer = sample.style is not None
        question = places.get(sample.parents[0] if is_answer else sample.id)
        if question is None:  # the picture itself ended, before it had questions
            picture.end = row.end
            continue
        question.text = sample.question or question.text
        question.type = sample.instruction_type or question.type
        if is_answer:
            question.answers.append(_answer(row))
        else:
            question.end = row.end
    order = {style: number for number, style in enumerate(("short", "brief", "detailed", "full"))}
    for question in picture.questions:
        question.answers.sort(key=lambda answer: (order.get(answer.style, len(order)), answer.style))


def _answer(row: _Row) -> AnswerView:
    sample = row.sample
    before, score_before = sample.previous[-1] if sample.previous else (None, None)
    fate = REPAIRED if sample.previous else KEPT
    if row.end is not None:
        fate = FAILED if row.end.is_failure else DROPPED
    return AnswerView(
        style=sample.style or "",
        text=sample.answer or "",
        fate=fate,
        score=_value(sample.score),
        before=before,
        score_before=_value(score_before),
        end=row.end,
    )


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """How many were left after each step."""

    pictures: int
    pictures_worked: int
    planned: int
    """Questions."""
    written: int
    distinct: int
    answerable: int
    answers: int
    kept: int
    """Answers, the repaired ones included."""
    repaired: int
    dropped: dict[str, dict[str, int]]
    """Stage -> reason -> number, of questions and answers."""
    failed: dict[str, dict[str, int]]
    """The same for failed calls and unreadable replies."""


def funnel(pictures: list[Picture], stages: tuple[str, ...] = JourneyConfig.stages) -> Funnel:
    """Count; `stages` in their order say how far a question came before it ended."""
    order = {stage: number for number, stage in enumerate(stages)}
    worked = [picture for picture in pictures if picture.is_worked]
    questions = [question for picture in worked for question in picture.questions]
    answers = [answer for question in questions for answer in question.answers]

    def past(stage: str) -> int:
        reached = order.get(stage, -1)
        return sum(
            question.end is None or order.get(question.end.stage, -1) > reached for question in questions
        )

    dropped: dict[str, dict[str, int]] = {}
    failed: dict[str, dict[str, int]] = {}
    for end in [question.end for question in questions] + [answer.end for answer in answers]:
        if end is not None:
            reasons = (failed if end.is_failure else dropped).setdefault(end.stage, {})
            reasons[end.reason] = reasons.get(end.reason, 0) + 1
    return Funnel(
        pictures=len(pictures),
        pictures_worked=len(worked),
        planned=sum(len(picture.questions) for picture in pictures),
        written=past("ask"),
        distinct=past("distinct"),
        answerable=past("check"),
        answers=len(answers),
        kept=sum(answer.fate in (KEPT, REPAIRED) for answer in answers),
        repaired=sum(answer.fate == REPAIRED for answer in answers),
        dropped=dropped,
        failed=failed,
    )
