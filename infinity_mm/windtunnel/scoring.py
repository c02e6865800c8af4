"""A finished wind-tunnel run against the truth: which answers were right before the policy, and which after it.

    pairs kept + pairs dropped after answering --truth.grade--> GradedPair* --> accuracies, rewrites

Reads the ground-truth file that the wind tunnel's source wrote for evaluation only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infinity_mm.record import Sample
from infinity_mm.runtime.run import Run
from infinity_mm.sources.read_pass import TRUTH_FILE
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.journey_pass import read_pairs
from infinity_mm.synth.outtake import REASONS, taken_out
from infinity_mm.windtunnel import truth
from infinity_mm.windtunnel.scene import Scene


@dataclass(frozen=True, kw_only=True)
class GradedPair:
    """One question and answer of a run with its grade; "unanswerable" and "not understood" count as wrong."""

    sample: Sample
    """As the run left it."""
    scene: Scene
    original: str
    """The answer as it was first given."""
    kept: bool
    """Whether the pair went into a conversation."""
    fate: str
    """`kept`, `rewritten`, or the stage and reason of its end."""
    original_grade: str
    """`right`, `wrong`, `unanswerable` or `not_understood`, of the first answer."""
    final_grade: str
    """The same of the answer as the run left it."""
    rewrite_attempted: bool


def scenes_of(run: Run) -> dict[str, Scene]:
    """Image hash -> scene."""
    manifest = run.manifest("read")
    assert manifest is not None, "the run has not read its images"
    scenes: dict[str, Scene] = {}
    for unit in manifest.units:
        for line in read_jsonl(run.read_file("read", unit, TRUTH_FILE)):
            scenes[line["image"]] = Scene.from_json(json.dumps(line["scene"]))
    return scenes


def graded_pairs(run: Run) -> list[GradedPair]:
    """Every pair that got as far as a score, in id order."""
    scenes = scenes_of(run)
    graded = [_grade(sample, fate, scenes) for sample, fate in _pairs(run)]
    return sorted(graded, key=lambda pair: pair.sample.id)


def _pairs(run: Run) -> Iterator[tuple[Sample, str]]:
    manifest = run.manifest("journeys")
    assert manifest is not None, "the run has not finished its journeys"
    taken = taken_out(run)
    for unit in manifest.units:
        for sample in read_pairs(run, "journeys", unit):
            kept = "rewritten" if sample.previous else "kept"
            out = taken.get(sample.id)
            yield sample, f"{out}: {REASONS[out]}" if out else kept
    for row in run.dropped("journeys"):
        if row["stage"] in ("decide", "rewrite"):
            sample = Sample.from_json(json.dumps(row["sample"]))
            yield sample, f"{row['stage']}: {row['reason']}"


def _grade(sample: Sample, fate: str, scenes: dict[str, Scene]) -> GradedPair:
    scene = scenes[sample.images[0].sha256]
    original = sample.previous[0][0] if sample.previous else sample.answer or ""
    question = sample.question or ""
    return GradedPair(
        sample=sample,
        scene=scene,
        original=original,
        kept=fate in ("kept", "rewritten"),
        fate=fate,
        original_grade=truth.grade(scene, question, original),
        final_grade=truth.grade(scene, question, sample.answer or ""),
        rewrite_attempted=bool(sample.previous),
    )


def score_run(pairs: Sequence[GradedPair]) -> dict[str, Any]:
    """Accuracy before and after the policy, what it kept of what was right, and what rewriting did."""
    kept = [pair for pair in pairs if pair.kept]
    right_before = [pair for pair in pairs if pair.original_grade == "right"]
    attempted = [pair for pair in pairs if pair.rewrite_attempted]
    accepted = [pair for pair in attempted if pair.kept]
    return {
        "answer_accuracy_before": _share(pairs, "original_grade"),
        "answer_accuracy_after": _share(kept, "final_grade"),
        "right_answers_kept_share": round(
            sum(pair.kept and pair.final_grade == "right" for pair in right_before)
            / max(1, len(right_before)),
            4,
        ),
        "unanswerable_or_not_understood_before": sum(
            pair.original_grade in ("unanswerable", "not_understood") for pair in pairs
        ),
        "unanswerable_or_not_understood_after": sum(
            pair.final_grade in ("unanswerable", "not_understood") for pair in kept
        ),
        "rewrites": {
            "attempted": len(attempted),
            "accepted": len(accepted),
            "repaired": sum(p.original_grade != "right" and p.final_grade == "right" for p in accepted),
            "broken": sum(p.original_grade == "right" and p.final_grade != "right" for p in accepted),
        },
    }


def _share(pairs: Sequence[GradedPair], grade: str) -> float:
    return round(sum(getattr(pair, grade) == "right" for pair in pairs) / max(1, len(pairs)), 4)
