"""The page of one run: summary figures, and a spread of its pictures with every pair that was made of them.

run directory --pairs, dropped, images--> Card* --render_page--> report/index.html
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infinity_mm.errors import explain
from infinity_mm.record import Sample
from infinity_mm.report.page import Card, Pair, render_page, table_rows
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.journey_pass import PAIRS_FILE

FIGURES = (
    "images", "questions_asked", "calls", "kept", "conversations", "types_covered", "answer_accuracy_before",
    "answer_accuracy_after", "right_answers_kept_share", "images_read", "pairs_kept", "pairs_rewritten", "wall_s",
)  # fmt: skip
"""Single figures of `summary.json` that stand at the top of the page, those of them that are there."""


def write_report(run_dir: Path | str, *, num_pictures: int) -> str:
    """Write `report/index.html` into a finished run (path or URL); returns where. Raises UserError if it is none."""
    run = Run(str(run_dir))
    if not files.exists(run.path("summary.json")):
        raise explain(
            what=f"{run_dir} holds no finished run: it has no summary.json",
            where="infinity-mm report",
            fix="give the run_dir of a run that has ended; the same synthesis command again finishes one",
        )
    summary = json.loads(files.read(run.path("summary.json")))
    name = run.run_dir.rpartition("/")[2]
    page = render_page(title=f"Run {name}", tables=_tables(summary), cards=list(_cards(run, num_pictures)))
    url = run.path("report", "index.html")
    files.write(url, page.encode())
    return url


def _tables(summary: dict[str, Any]) -> list[tuple[str, list[list[Any]]]]:
    tables = [("Figures", table_rows({k: summary[k] for k in FIGURES if k in summary}, ("", "value")))]
    names = ("continued", "expanded", "merged", "dropped", "quarantined")
    fates = [["stage", *names]]
    for stage, counts in summary.get("fates", {}).items():
        if counts:
            fates.append([stage, *(counts.get(name, "") for name in names)])
    tables.append(("Fates per stage", fates))
    reasons = [
        [f"{stage}: {reason}", number]
        for kind in ("dropped", "quarantined")
        for stage, found in summary.get(kind, {}).items()
        for reason, number in found.items()
    ]
    tables.append(("Why samples ended", [["stage: reason", "samples"], *reasons] if reasons else []))
    for key, heading in (
        ("rewrites", "Rewrites"),
        ("student_accuracy", "Students (held-out scenes)"),
        ("phase_s", "Seconds per phase"),
    ):
        if key in summary:
            tables.append((heading, table_rows(summary[key], ("", "value"))))
    return tables


def _cards(run: Run, num_pictures: int) -> Iterator[Card]:
    """Pictures spread evenly over the run in id order."""
    pairs: dict[str, list[tuple[Sample, Pair]]] = defaultdict(list)
    for sample, pair in _pairs(run):
        pairs[sample.images[0].sha256].append((sample, pair))
    shas = sorted(pairs)
    stride = max(1, len(shas) // max(1, num_pictures))
    for sha in shas[::stride][:num_pictures]:
        sample = pairs[sha][0][0]
        image = sample.images[0]
        tags = ", ".join(tag.name for tag in sample.tags or ())
        yield Card(
            id=sha[:12],
            image=run.images.read(image),
            caption=f"{image.source}, {image.width} x {image.height} px, tags: {tags or 'none'}",
            pairs=[pair for _, pair in sorted(pairs[sha], key=lambda row: row[0].id)],
        )


def _pairs(run: Run) -> Iterator[tuple[Sample, Pair]]:
    manifest = run.manifest("journeys")
    for unit in manifest.units if manifest else ():
        for line in read_jsonl(run.read_file("journeys", unit, PAIRS_FILE)):
            sample = Sample.from_json(json.dumps(line["sample"]))
            yield sample, _pair(sample, "rewritten" if sample.previous else "kept", "")
    for row in run.dropped("journeys") if manifest else ():
        sample = Sample.from_json(json.dumps(row["sample"]))
        yield sample, _pair(sample, "dropped", f"{row['stage']}: {row['reason']}")


def _pair(sample: Sample, fate: str, reason: str) -> Pair:
    return Pair(
        question=sample.question or "(no question)",
        answer=sample.answer or "",
        style=sample.style or "",
        type=sample.instruction_type or "",
        score=None if sample.score is None else sample.score.value,
        fate=fate,
        reason=reason,
        previous=sample.previous[0][0] if sample.previous else "",
    )
