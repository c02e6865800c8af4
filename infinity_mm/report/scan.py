"""One reading of a committed run: exact counts over all of it, and bounded, seeded samples to look at.

manifests ----------------------> funnel: per stage what came in, how it ended, why
pairs, dropped, quarantined ----> counts by type, score, length, script (all of them)
    unit by unit      \\---------> sections: random, best, worst, rewritten, dropped, quarantined (some of them)
ledgers of the other passes ----> sections: repeats
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infinity_mm.errors import explain
from infinity_mm.report.lookup import column, committed_passes, image_id, pc, run_json
from infinity_mm.report.pools import Smallest, draw
from infinity_mm.report.text import clip, script_of, word_diff
from infinity_mm.runtime.ledger import fate_counts
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import Entry, Manifest, entries, read_object
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth import outtake
from infinity_mm.synth.journey_pass import PAIRS_FILE

FATES = ("kept", "rewritten", "dropped", "quarantined")
"""Ends of a question or pair on the page; `rewritten` is kept with another answer than the first."""
STAGE_FATES = ("continued", "expanded", "merged", "dropped", "quarantined")
SCORE_BINS = 18
"""Half points from 1 to 10."""
LENGTH_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Characters; the last bin is open."""
_MAX_NAMES = 300
"""Different types, reasons, styles or sources that are counted by name; what comes after is counted as `other`."""
_PER_PICTURE = 30
"""Rows shown of one random picture."""
_UNITS = {
    "spread": "images",
    "ask": "questions",
    "distinct": "questions",
    "check": "questions",
    "critic": "questions",
    "styles": "questions",
    "answer": "pairs",
    "blind": "pairs",
    "loss": "pairs",
    "judge": "pairs",
    "decide": "pairs",
    "rewrite": "pairs",
    "merge": "pairs",
    "read": "files",
    "unique": "images",
    "tag": "images",
    "plan": "images",
}
_MADE = {"unique": "images by content", "spread": "questions", "styles": "pairs"}


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage of the funnel."""

    pass_name: str
    stage: str
    unit: str
    """What is counted: files, images, questions, pairs or conversations."""
    fates: Mapping[str, int]
    reasons: Sequence[tuple[str, str, int]]
    """(fate, reason, number), most first."""

    @property
    def came_in(self) -> int:
        """Samples with a fate in this stage."""
        return sum(self.fates.values())


@dataclass(kw_only=True)
class Counts:
    """Exact figures over all questions and pairs of the run."""

    rows: Counter[str] = field(default_factory=Counter)
    """By fate."""
    types: dict[str, Counter[str]] = field(default_factory=dict)
    """Instruction type -> fate -> number."""
    styles: dict[str, Counter[str]] = field(default_factory=dict)
    scripts: dict[str, Counter[str]] = field(default_factory=dict)
    """Guessed from the answer, or the question where there is no answer."""
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    """Source and licence of the image."""
    scores: dict[str, list[int]] = field(default_factory=dict)
    """Fate -> number per half point."""
    question_chars: list[int] = field(default_factory=lambda: [0] * len(LENGTH_EDGES))
    answer_chars: list[int] = field(default_factory=lambda: [0] * len(LENGTH_EDGES))

    def add(self, sample: Mapping[str, Any], fate: str) -> None:
        """Count one question or pair."""
        self.rows[fate] += 1
        question, answer, style = sample["question"], sample["answer"], sample["style"]
        _bump(self.types, sample["instruction_type"] or "none", fate)
        if style:
            _bump(self.styles, style, fate)
        if answer or question:
            _bump(self.scripts, script_of(answer or question), fate)
        if question:
            self.question_chars[_length_bin(question)] += 1
        if answer:
            self.answer_chars[_length_bin(answer)] += 1
        value = last_score(sample)
        if value is not None:
            bins = self.scores.setdefault(fate, [0] * SCORE_BINS)
            bins[min(SCORE_BINS - 1, max(0, int((value - 1) * 2)))] += 1
        if sample["images"]:
            image = sample["images"][0]
            _bump(self.sources, f"{image['source']} · {image['licence']}", fate)


@dataclass(kw_only=True)
class Sections:
    """Bounded samples; every row is a plain dict, its texts cleaned and cut."""

    pictures: Smallest
    """Images with all that was made of each."""
    best: Smallest
    worst: Smallest
    by_reason: dict[tuple[str, str, str], Smallest] = field(default_factory=dict)
    """(section, stage, reason) -> rows."""
    repeats: dict[str, Smallest] = field(default_factory=dict)
    """Kind of repeat -> {"id", "into"}."""


@dataclass(kw_only=True)
class Scan:
    """All that the page knows."""

    run: Run
    config: Mapping[str, Any]
    """The content of run.json."""
    passes: Sequence[Manifest]
    funnel: Sequence[StageRow]
    counts: Counts
    sections: Sections


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is shown of a run."""

    seed: int = 0
    """Decides which samples are on the page; the same run and seed give the same ones."""
    per_section: int = 48
    """Most samples in one section."""
    thumbnail_px: int = 288
    """Longest side of a picture."""
    text_chars: int = 2000
    """Longest text; a longer one is cut, and says so."""

    def __post_init__(self) -> None:
        if self.per_section < 2 or self.thumbnail_px < 16 or self.text_chars < 50:
            raise explain(
                what=f"per_section={self.per_section}, thumbnail_px={self.thumbnail_px}, "
                f"text_chars={self.text_chars}",
                where="infinity-mm report",
                fix="use at least 2 samples, 16 px and 50 characters",
            )


def scan(run: Run, config: ReportConfig) -> Scan:
    """Read every committed unit once, one at a time; raises `UserError` if nothing is committed."""
    passes = committed_passes(run)
    started = run_json(run)
    counts = Counts()
    sections = Sections(
        pictures=Smallest(max(1, config.per_section // 2)),
        best=Smallest(config.per_section),
        worst=Smallest(config.per_section),
    )
    reader = _Reader(
        config.seed, config.per_section, config.text_chars, counts, sections, outtake.taken_out(run)
    )
    for manifest in passes:
        for entry in entries(run.run_dir, manifest):
            if f"file/{PAIRS_FILE}" in entry.objects:
                reader.journeys(run, entry)
            else:
                reader.other(run, entry)
    return Scan(
        run=run,
        config=started,
        passes=passes,
        funnel=funnel(passes, started.get("config", {}).get("stages", ())),
        counts=counts,
        sections=sections,
    )


def funnel(passes: Sequence[Manifest], journey_stages: Sequence[str]) -> list[StageRow]:
    """Stages in the order in which samples meet them."""
    order = ["spread", *journey_stages]
    rows: list[StageRow] = []
    after_journeys = False
    for manifest in passes:
        fates: dict[str, Counter[str]] = defaultdict(Counter)
        reasons: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
        for stage, fate, reason, number in fate_counts(manifest.totals):
            fates[stage][fate] += number
            if reason:
                reasons[stage].append((fate, reason, number))
        stages = sorted(fates, key=lambda name: order.index(name) if name in order else len(order))
        unit = "conversations" if after_journeys else "images"
        rows += [
            StageRow(
                pass_name=manifest.pass_name,
                stage=stage,
                unit=_UNITS.get(stage, unit),
                fates=fates[stage],
                reasons=sorted(reasons[stage], key=lambda row: (-row[2], row[:2])),
            )
            for stage in stages
        ]
        after_journeys = after_journeys or manifest.pass_name == "journeys"
    return rows


def made(stage: str) -> str:
    """What a stage that expands its input makes of it."""
    return _MADE.get(stage, "samples")


def score_value(score: Mapping[str, Any] | None) -> float | None:
    """The figure that a policy compares; see `record.Score.value`."""
    if score is None:
        return None
    return score["expected"] if score["expected"] is not None else score["overall"]


def last_score(sample: Mapping[str, Any]) -> float | None:
    """The score of the answer, or of the one before it where a rewrite was dropped before it was judged."""
    value = score_value(sample.get("score"))
    previous = sample.get("previous") or ()
    return score_value(previous[-1][1]) if value is None and previous else value


@dataclass
class _Reader:
    seed: int
    per_section: int
    text_chars: int
    counts: Counts
    sections: Sections
    taken: Mapping[str, str]
    """Pairs that a later pass took out again -> that pass."""

    def journeys(self, run: Run, entry: Entry) -> None:
        """Pairs and what was set aside, grouped by image."""
        pictures: dict[str, list[tuple[Mapping[str, Any], str, Mapping[str, Any]]]] = defaultdict(list)
        for raw, fate, why in self._rows(run, entry):
            sample = raw["sample"]
            if sample is None:
                continue
            self.counts.add(sample, fate)
            self._offer(sample, fate, why, entry.pass_name)
            pictures[image_id(raw["id"])].append((sample, fate, why))
        for image, rows in pictures.items():
            key = (draw(self.seed, "pictures", image), image)
            self.sections.pictures.offer(key, lambda rows=rows: self._picture(rows, entry.pass_name))

    def other(self, run: Run, entry: Entry) -> None:
        """Any other pass: what it set aside, and which of its samples repeat another one."""
        for raw, fate, why in self._rows(run, entry):
            sample = raw["sample"] or {"id": raw["id"], "images": []}
            self._by_reason(sample, fate, why, entry.pass_name)
        table = column(run, entry, "ledger", ["id", "stage", "fate", "into"])
        for row in table.filter(pc.equal(table["fate"], pa.scalar("merged"))).to_pylist():
            pool = self.sections.repeats.setdefault(row["stage"], Smallest(self.per_section // 2))
            key = (draw(self.seed, "repeats", row["id"]), row["id"])
            pool.offer(
                key, lambda row=row: {"id": row["id"], "into": row["into"][0], "pass": entry.pass_name}
            )

    def _rows(self, run: Run, entry: Entry) -> Iterator[tuple[dict[str, Any], str, Mapping[str, Any]]]:
        """(row, fate, why) of everything a unit committed besides what goes on."""
        if (pairs := entry.objects.get(f"file/{PAIRS_FILE}")) is not None:
            for row in read_jsonl(read_object(run.run_dir, pairs)):
                if (pass_name := self.taken.get(row["id"])) is not None:
                    yield row, "dropped", {"stage": pass_name, "reason": outtake.REASONS[pass_name]}
                else:
                    yield row, "rewritten" if row["sample"]["previous"] else "kept", {}
        for kind in ("dropped", "quarantined"):
            if kind in entry.objects:
                for row in read_jsonl(read_object(run.run_dir, entry.objects[kind])):
                    yield row, kind, row

    def _offer(self, sample: Mapping[str, Any], fate: str, why: Mapping[str, Any], pass_name: str) -> None:
        value = last_score(sample)
        if value is not None:
            at_random = draw(self.seed, "scored", sample["id"])
            make = lambda: self._row(sample, fate, why, pass_name)  # noqa: E731
            self.sections.best.offer((-value, at_random, sample["id"]), make)
            self.sections.worst.offer((value, at_random, sample["id"]), make)
        if sample["previous"]:
            self._by_reason(sample, fate, why, pass_name, section="rewritten")
        if fate in ("dropped", "quarantined"):
            self._by_reason(sample, fate, why, pass_name)

    def _by_reason(
        self,
        sample: Mapping[str, Any],
        fate: str,
        why: Mapping[str, Any],
        pass_name: str,
        *,
        section: str = "",
    ) -> None:
        pools = self.sections.by_reason
        name = (section or fate, why.get("stage", ""), why.get("reason", fate))
        if name not in pools and len(pools) >= _MAX_NAMES:
            name = (section or fate, "", "other")
        pool = pools.setdefault(name, Smallest(self.per_section))
        key = (draw(self.seed, "reason", sample["id"]), sample["id"])
        pool.offer(key, lambda: self._row(sample, fate, why, pass_name))

    def _picture(
        self, rows: Sequence[tuple[Mapping[str, Any], str, Mapping[str, Any]]], pass_name: str
    ) -> dict[str, Any]:
        ordered = sorted(rows, key=lambda row: row[0]["id"])
        shown = [self._row(sample, fate, why, pass_name) for sample, fate, why in ordered[:_PER_PICTURE]]
        return {"rows": shown, "of": len(rows)}

    def _row(
        self, sample: Mapping[str, Any], fate: str, why: Mapping[str, Any], pass_name: str
    ) -> dict[str, Any]:
        return page_row(sample, fate, why, pass_name, text_chars=self.text_chars)


def page_row(
    sample: Mapping[str, Any], fate: str, why: Mapping[str, Any], pass_name: str, *, text_chars: int
) -> dict[str, Any]:
    """One sample for the page, bounded in size; `images` still holds plain image references."""

    def text(value: str | None, most: int = text_chars) -> str:
        return "" if value is None else clip(value, most)

    answer, previous = sample.get("answer"), sample.get("previous") or ()
    said = conversation_text(sample.get("turns") or ()) if answer is None else answer
    row: dict[str, Any] = {
        "id": text(sample["id"], 200),
        "fate": fate,
        "pass": pass_name,
        "stage": text(why.get("stage"), 100),
        "reason": text(why.get("reason"), 200),
        "detail": text(why.get("error") or why.get("detail")),
        "item": text(" · ".join(why[k] for k in ("source", "key") if why.get(k)), 400),
        "type": text(sample.get("instruction_type"), 200),
        "style": text(sample.get("style"), 40),
        "question": text(sample.get("question")),
        "answer": text(said),
        "script": script_of(said or sample.get("question") or ""),
        "score": _round(last_score(sample)),
        "judgedNow": sample.get("score") is not None,
        "judged": _judged(sample.get("score"), sample.get("labels") or ()),
        "examples": [text(example, 300) for example in (sample.get("examples") or ())[:4]],
        "tags": [[text(t["name"], 100), round(t["score"], 3)] for t in (sample.get("tags") or ())[:12]],
        "calls": [
            [text(call[key], 160) for key in ("stage", "model", "prompt")]
            + [call["temperature"], str(call["seed"]), call["key"][:16]]
            for call in (sample.get("calls") or ())[:16]
        ],
        "images": sample["images"][:1],
        "numImages": len(sample["images"]),
    }
    if previous:
        first, score = previous[-1]
        row["before"] = {
            "answer": text(first),
            "score": _round(score_value(score)),
            "rounds": len(previous),
            "diff": word_diff(text(first), text(answer)),
        }
    return row


def conversation_text(turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as one text, a line per turn."""
    return "\n".join(
        f"{turn['role']}: {''.join(part.get('text', '') for part in turn['content'])}" for turn in turns
    )


def _judged(score: Mapping[str, Any] | None, labels: Sequence[Mapping[str, Any]]) -> str:
    measured = [f"{clip(label['name'], 60)} {label['value']:.3g}" for label in labels[:8]]
    if score is None:
        return ", ".join(measured)
    parts = [f"written {score['overall']}" if score["overall"] is not None else "no number written"]
    if score["expected"] is not None:
        parts.append(f"expected {score['expected']:.2f}")
    if score["uncertainty"] is not None:
        parts.append(f"entropy {score['uncertainty']:.2f} nats")
    parts += [clip(flag, 60) for flag in score["flags"][:8]]
    return ", ".join(parts + measured)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _bump(table: dict[str, Counter[str]], name: str, fate: str) -> None:
    if name not in table and len(table) >= _MAX_NAMES:
        name = "other"
    table.setdefault(name, Counter())[fate] += 1


def _length_bin(text: str) -> int:
    return sum(1 for edge in LENGTH_EDGES[1:] if len(text) >= edge)


def plain(sample_json: str) -> dict[str, Any]:
    """A record as `page_row` takes it."""
    return json.loads(sample_json)
