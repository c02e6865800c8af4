"""The static part of the page: the funnel, the distributions and the tables of time and cost, as HTML and rows.

Scan --> funnel_html, charts_html, cost_tables
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from infinity_mm.report import charts
from infinity_mm.report.scan import FATES, LENGTH_EDGES, SCORE_BINS, STAGE_FATES, Scan, StageRow, made
from infinity_mm.report.text import clip
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files

_MOST_NAMES = 24
"""Names in one chart; the others are one row of it."""


def funnel_html(rows: Sequence[StageRow]) -> str:
    """One row per stage, with a bar by fate and a button per reason."""
    most = max((row.came_in for row in rows), default=1)
    body = "".join(_stage(row, most) for row in rows)
    return (
        f'<div class="box">{charts.key(STAGE_FATES)}<table class="funnel"><caption>Every sample has exactly one fate '
        "in every stage it meets. A stage that expands makes questions of images, or one pair per answer style of "
        "questions; merging makes conversations of pairs. Reasons lead to examples.</caption>"
        '<thead><tr><th scope="col">'
        'stage</th><th scope="col" class="num">came in</th><td class="bar"></td><th scope="col">how it went on or ended'
        f"</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _stage(row: StageRow, most: int) -> str:
    fates = {fate: row.fates.get(fate, 0) for fate in STAGE_FATES}
    texts = []
    for fate, number in fates.items():
        if number:
            of = f" into {made(row.stage)}" if fate == "expanded" else ""
            texts.append(f"{number:,} {fate}{of}")
    reasons = "".join(_reason(row.stage, fate, reason, number) for fate, reason, number in row.reasons)
    listed = f'<ul class="reasons">{reasons}</ul>' if reasons else ""
    return (
        f'<tr><th scope="row">{escape(row.stage)}</th><td class="num">{row.came_in:,} {escape(row.unit)}</td>'
        f'<td class="bar">{charts.stacked_bar(fates, most)}</td><td>{escape(", ".join(texts))}{listed}</td></tr>'
    )


def _reason(stage: str, fate: str, reason: str, number: int) -> str:
    name = clip(f"{stage}: {reason}", 300)
    return (
        f'<li><button type="button" class="reason" data-end="{escape(name)}" title="show examples, {escape(fate)}">'
        f"<bdi>{escape(clip(reason, 200))}</bdi> <b>{number:,}</b></button></li>"
    )


def charts_html(found: Scan) -> str:
    """Types, scores, lengths, styles, scripts, sources: over everything, not over what is shown."""
    counts = found.counts
    edges = [f"{int(1 + i / 2)}" if i % 2 == 0 else "" for i in range(SCORE_BINS)]
    lengths = [f"{edge}+" if edge < 1024 else f"{edge // 1024}k+" for edge in LENGTH_EDGES]
    what = "all questions and pairs of the run"
    parts = [
        charts.bar_table("Instruction types", f"{what}, by type", counts.types, FATES, most=_MOST_NAMES),
        charts.columns("Scores", "judged pairs per half point, by fate", edges, counts.scores, FATES),
        charts.columns(
            "Length of answers", "characters", lengths, {"continued": counts.answer_chars}, ["continued"]
        ),
        charts.columns(
            "Length of questions", "characters", lengths, {"continued": counts.question_chars}, ["continued"]
        ),
        charts.bar_table("Answer styles", f"{what} that have one", counts.styles, FATES, most=_MOST_NAMES),
        charts.bar_table(
            "Languages, guessed",
            "by the script of the answer's letters alone: Latin may be English or Spanish",
            counts.scripts,
            FATES,
            most=_MOST_NAMES,
        ),
        charts.bar_table("Sources and licences", what, counts.sources, FATES, most=_MOST_NAMES),
    ]
    return f'{charts.key(FATES)}<div class="charts">{"".join(parts)}</div>'


def cost_tables(found: Scan) -> list[tuple[str, str, list[list[Any]]]]:
    """(heading, caption, rows) of time per pass, calls per stage, and what a demo measured against the truth."""
    passes: list[list[Any]] = [["pass", "came in", "seconds", "per second"]]
    for manifest in found.passes:
        num_in = manifest.totals["in"]
        speed = num_in / manifest.seconds if manifest.seconds > 0 else 0.0
        passes.append([manifest.pass_name, num_in, round(manifest.seconds, 2), round(speed, 2)])
    calls: list[list[Any]] = [["stage", "calls", "from journal", "failed", "tokens in", "tokens out"]]
    for manifest in found.passes:
        metrics = manifest.metrics
        for stage in _in_order(metrics, found):
            tokens = [int(metrics.get(f"{kind}_tokens.{stage}", 0)) for kind in ("prompt", "completion")]
            calls.append(
                [stage, int(metrics[f"calls.{stage}"])]
                + [int(metrics.get(f"{kind}.{stage}", 0)) for kind in ("from_journal", "failed_calls")]
                + (tokens if any(tokens) else ["not known", "not known"])
            )
    if len(calls) > 2:
        sums = [sum(n for n in column if isinstance(n, int)) for column in zip(*calls[1:])]
        calls.append(["all", *sums[1:]])
    return [
        (
            "Time per pass",
            "Wall time of the call that committed the pass: for one that was resumed, of the last call only.",
            passes,
        ),
        (
            "Calls to models",
            "Calls from the journal cost nothing now; their tokens are those of the recorded reply.",
            calls,
        ),
        *_summary_tables(found.run),
    ]


def _in_order(metrics: Mapping[str, float], found: Scan) -> list[str]:
    stages = [key.removeprefix("calls.") for key in metrics if key.startswith("calls.")]
    order = [row.stage for row in found.funnel]
    return sorted(stages, key=lambda stage: (order.index(stage) if stage in order else len(order), stage))


def _summary_tables(run: Run) -> Iterator[tuple[str, str, list[list[Any]]]]:
    """What the summary of a finished run says, and the wind tunnel's demo adds: figures against the truth."""
    try:
        summary = json.loads(files.read(run.path("summary.json")))
    except FileNotFoundError:
        return
    figures = ("answer_accuracy_before", "answer_accuracy_after", "right_answers_kept_share")
    rows = [[name.replace("_", " "), summary[name]] for name in figures if name in summary]
    if rows:
        yield "Against the truth", "Known in the drawn world only.", [["", "value"], *rows]
    if summary.get("predicted"):
        lines = [[name.replace("_", " "), *row.values()] for name, row in summary["predicted"].items()]
        yield (
            "Prediction and measurement",
            "From infinity-mm plan: expected, with its 95 % interval.",
            [["", "low", "expected", "high", "measured"], *lines],
        )
    for name, heading in (
        ("diversity", "Diversity of the questions"),
        ("choice_letters", "Right letters of multiple choice"),
        ("rewrites", "Rewrites against the truth"),
        ("student_accuracy", "Students on held-out scenes"),
    ):
        if isinstance(summary.get(name), Mapping) and summary[name]:
            rows = [[str(key).replace("_", " "), value] for key, value in summary[name].items()]
            yield heading, "From summary.json.", [["", "value"], *rows]
