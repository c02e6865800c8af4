"""The page of one run: read it once, choose what to show, fetch only the pictures that are shown.

run directory --scan--> counts + sections --lookup--> file names, where it went --thumbs--> report/index.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from infinity_mm.errors import explain
from infinity_mm.record import ImageRef, Sample
from infinity_mm.report import charts
from infinity_mm.report.lookup import files_of_images, image_id, ledger_lines, samples_by_id
from infinity_mm.report.page import Gallery, Page, render_page
from infinity_mm.report.scan import (
    FATES,
    LENGTH_EDGES,
    SCORE_BINS,
    STAGE_FATES,
    Scan,
    StageRow,
    made,
    page_row,
    plain,
    scan,
)
from infinity_mm.report.text import clip
from infinity_mm.report.thumbs import OVER_BUDGET, Thumbnail, Thumbnails
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files

MAX_BYTES = 25_000_000
"""Largest page."""
_THUMB_BYTES = 16_000_000
_ROW_BYTES = 6_000_000
_MOST_NAMES = 24
"""Names in one chart; the others are one row of it."""


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


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page that was written."""

    path: str
    bytes: int
    rows: int
    """Questions, pairs and other samples on the page."""
    rows_in_run: int
    """Questions and pairs in the run."""
    pictures: int
    pictures_left_out: Mapping[str, int]
    """Reason -> number."""
    sections: Mapping[str, int]
    """Section -> samples."""

    def to_plain(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def write_report(run_dir: str, config: ReportConfig | None = None) -> Report:
    """Write `report/index.html` into a run, finished or not; raises `UserError` if nothing of it is committed."""
    config = config or ReportConfig()
    run = Run(str(run_dir))
    found = scan(run, seed=config.seed, per_section=config.per_section, text_chars=config.text_chars)
    thumbs = Thumbnails(images=run.images, px=config.thumbnail_px, max_bytes=_THUMB_BYTES)
    shelf = _Shelf(run, found, config, thumbs)
    shelf.fill()
    gallery = shelf.gallery()
    page = Page(
        title=f"Run {found.config.get('config', {}).get('name') or run.run_dir.rstrip('/').rpartition('/')[2]}",
        lead=_lead(found),
        numbers=_numbers(found),
        funnel_html=_funnel(found.funnel),
        charts_html=_charts(found),
        tables=_tables(found),
        notes=_notes(found, shelf, config),
        gallery=gallery,
    )
    data = render_page(page).encode()
    if len(data) > MAX_BYTES:
        raise explain(
            what=f"the page would have {len(data):,} bytes, more than {MAX_BYTES:,}",
            where=run.run_dir,
            fix="show fewer samples (--samples) or smaller pictures",
        )
    path = run.path("report", "index.html")
    files.write(path, data)
    return Report(
        path=path,
        bytes=len(data),
        rows=len(gallery.rows),
        rows_in_run=found.counts.rows.total(),
        pictures=len(gallery.thumbnails),
        pictures_left_out=dict(thumbs.left_out),
        sections={section["name"]: section["rows"] for section in gallery.sections},
    )


class _Shelf:
    """Rows, images and sections of the gallery, each row and image once."""

    def __init__(self, run: Run, found: Scan, config: ReportConfig, thumbs: Thumbnails) -> None:
        self._run, self._scan, self._config, self._thumbs = run, found, config, thumbs
        self._rows: dict[tuple[str, str], int] = {}
        self.rows: list[dict[str, Any]] = []
        self.sections: list[dict[str, Any]] = []
        self._images: dict[str, int] = {}
        self._refs: list[tuple[ImageRef, str, list[Any]]] = []
        """(reference, id of the image's sample, tags)."""
        self._bytes = 0
        self.rows_left_out = 0

    def fill(self) -> None:
        """Take the sections in the order of the tabs; what no longer fits is counted, not silently cut."""
        found, per = self._scan.sections, self._config.per_section
        num_rows = self._scan.counts.rows.total()
        self._section(
            "random", "Random pictures", f"{len(found.pictures)} of {found.pictures.seen:,} pictures, drawn "
            f"with seed {self._config.seed}, each with all that was made of it.",
            [(picture["rows"], _cut_note(picture)) for picture in found.pictures],
        )  # fmt: skip
        for name, pool, how in (("best", found.best, "highest"), ("worst", found.worst, "lowest")):
            about = (
                f"The {len(pool)} {how} scores of {pool.seen:,} judged pairs, kept or not; equal scores "
                "in an order drawn with the seed."
            )
            self._section(name, name.capitalize(), about, [([row], "") for row in pool])
        for name, what in (
            ("rewritten", "pairs with a rewritten answer"),
            ("dropped", "samples dropped"),
            ("quarantined", "samples set aside because something failed"),
        ):
            pools = {key: pool for key, pool in found.by_reason.items() if key[0] == name}
            rows = _round_robin([list(pool) for _, pool in sorted(pools.items())], 2 * per)
            seen = sum(pool.seen for pool in pools.values())
            about = (
                f"{len(rows)} of {seen:,} {what}, taken in turn from each of {len(pools)} stages and reasons."
            )
            self._section(name, name.capitalize(), about, [([row], "") for row in rows])
        self._repeats()
        if not self.sections:
            self.sections.append(_section("empty", "Nothing", f"No samples among {num_rows} rows.", []))

    def gallery(self) -> Gallery:
        """With file names, pictures and what became of each pair looked up."""
        went = where_it_went(self._run, self._scan, [row["id"] for row in self.rows])
        for row in self.rows:
            row["went"] = went.get(row["id"], "")
        names = files_of_images(self._run, {id_ for _, id_, _ in self._refs})
        thumbnails: dict[str, str] = {}
        images: list[dict[str, Any]] = []
        for number, (ref, id_, tags) in enumerate(self._refs):
            made_ = self._thumbs.make(ref)
            is_made = isinstance(made_, Thumbnail)
            if is_made:
                thumbnails[f"t{number}"] = made_.webp
            images.append(
                {
                    "sha": clip(ref.sha256, 64),
                    "width": ref.width,
                    "height": ref.height,
                    "source": clip(ref.source, 200),
                    "licence": clip(ref.licence, 200),
                    "files": [clip(f"{source} · {key}", 300) for source, key in names.get(id_, [])[:8]],
                    "tags": tags,
                    "thumb": f"t{number}" if is_made else None,
                    "why": "" if is_made else made_,
                    "tw": made_.width if is_made else None,
                    "th": made_.height if is_made else None,
                }
            )
        return Gallery(
            rows=self.rows,
            images=images,
            sections=self.sections,
            thumbnails=thumbnails,
            options={
                "type": sorted({row["type"] for row in self.rows} - {""}),
                "fate": [fate for fate in FATES if any(row["fate"] == fate for row in self.rows)],
                "end": sorted({f"{row['stage']}: {row['reason']}" for row in self.rows if row["reason"]}),
                "script": sorted({row["script"] for row in self.rows}),
            },
        )

    def _section(
        self, name: str, label: str, about: str, cards: Sequence[tuple[Sequence[dict[str, Any]], str]]
    ) -> None:
        shown = []
        for rows, note in cards:
            places = [place for row in rows if (place := self._add(row)) is not None]
            if places:
                shown.append({"rows": places, "note": note})
        if shown:
            self.sections.append(_section(name, label, about, shown))

    def _add(self, row: dict[str, Any]) -> int | None:
        key = (row["id"], row["pass"])
        if key in self._rows:
            return self._rows[key]
        size = len(json.dumps(row, ensure_ascii=False).encode())
        if self._bytes + size > _ROW_BYTES:
            self.rows_left_out += 1
            return None
        self._bytes += size
        raw, tags = row.pop("images"), row.pop("tags")
        row["image"] = self._image(raw[0], image_id(row["id"]), tags) if raw else -1
        self._rows[key] = len(self.rows)
        self.rows.append(row)
        return self._rows[key]

    def _image(self, raw: Mapping[str, Any], id_: str, tags: list[Any]) -> int:
        place = self._images.setdefault(raw["sha256"], len(self._refs))
        if place == len(self._refs):
            self._refs.append((ImageRef(**raw), id_, tags))
        elif tags and not self._refs[place][2]:
            self._refs[place][2].extend(tags)
        return place

    def _repeats(self) -> None:
        """Merged samples beside what they repeat, and questions beside the one they repeat."""
        cards: list[dict[str, Any]] = []
        seen = 0
        for stage, pool in sorted(self._scan.sections.repeats.items()):
            seen += pool.seen
            chosen = list(pool)
            ids = {id_ for row in chosen for id_ in (row["id"], row["into"])}
            samples: dict[str, Sample] = {}
            # A merged sample was put out by the pass before; the one it repeats may have a new id since.
            for manifest in self._scan.passes:
                if chosen and manifest.pass_name in (chosen[0]["pass"], self._before(chosen[0]["pass"])):
                    samples |= samples_by_id(self._run, manifest, ids)
            for row in chosen:
                places, pictures = [], []
                for id_, fate in ((row["id"], "dropped"), (row["into"], "kept")):
                    if id_ in samples:
                        why = (
                            {"stage": stage, "reason": f"repeats {row['into']}"} if fate == "dropped" else {}
                        )
                        place = self._add(
                            self._conversation(samples[id_], fate, why, f"{row['pass']} (repeats)")
                        )
                        if place is not None:
                            places.append(place)
                            pictures.append(self.rows[place]["image"])
                note = f"{stage}: {clip(row['id'], 100)} repeats {clip(row['into'], 100)}"
                if places:
                    cards.append({"rows": places, "note": note, "images": list(dict.fromkeys(pictures))})
        questions = self._scan.sections.by_reason.get(("dropped", "distinct", "duplicate_question"))
        for row in list(questions or ())[: self._config.per_section // 2]:
            place = self._add(row)
            if place is not None:
                first = row["detail"].removeprefix("repeats ")
                also = [i for i, other in enumerate(self.rows) if image_id(other["id"]) == image_id(first)
                        and other["id"].startswith(first)][:1]  # fmt: skip
                cards.append({"rows": [place, *also], "note": f"distinct: {row['detail']}"})
        seen += questions.seen if questions else 0
        if cards:
            about = (
                f"{len(cards)} of {seen:,} samples that repeat another one (the same file, the same conversation "
                "about a near-duplicate picture, the same question), side by side."
            )
            self.sections.append(_section("repeats", "Near duplicates", about, cards))

    def _before(self, pass_name: str) -> str | None:
        return next(m.after for m in self._scan.passes if m.pass_name == pass_name)

    def _conversation(
        self, sample: Sample, fate: str, why: Mapping[str, Any], pass_name: str
    ) -> dict[str, Any]:
        row = page_row(plain(sample.to_json()), fate, why, pass_name, text_chars=self._config.text_chars)
        texts = [f"{turn.role}: {turn.text}" for turn in sample.turns]
        return row | {"answer": clip("\n".join(texts), self._config.text_chars)}


def where_it_went(run: Run, found: Scan, ids: Sequence[str]) -> dict[str, str]:
    """Id of a pair -> the conversation it went into and what became of that."""
    told: dict[str, str] = {}
    into: dict[str, str] = {}
    for manifest in found.passes:
        if not into:
            lines = ledger_lines(run, manifest, ids=set(ids)) if "journeys" in manifest.pass_name else ()
            into = {line.id: line.into[0] for line in lines if line.fate == "merged"}
            told = {id_: f"turn of conversation {target}" for id_, target in into.items()}
            continue
        ends = {line.id: line for line in ledger_lines(run, manifest, ids=set(into.values()))}
        for id_, target in into.items():
            line = ends.get(target)
            if line is not None and line.fate != "continued":
                told[id_] += f"; {line.fate} in {line.stage}" + (f" into {line.into[0]}" if line.into else "")
                told[id_] += f" ({line.reason})" if line.reason else ""
            elif line is not None and manifest.pass_name == "publish":
                told[id_] += "; published"
    return {id_: clip(text, 400) for id_, text in told.items()}


def _section(name: str, label: str, about: str, cards: list[dict[str, Any]]) -> dict[str, Any]:
    num_rows = sum(len(card["rows"]) for card in cards)
    return {"name": name, "label": label, "about": about, "cards": cards, "rows": num_rows}


def _round_robin(pools: Sequence[list[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    """One of each in turn, so that a rare reason is seen beside a common one."""
    longest = max((len(pool) for pool in pools), default=0)
    mixed = [pool[i] for i in range(longest) for pool in pools if i < len(pool)]
    return mixed[:most]


def _cut_note(picture: Mapping[str, Any]) -> str:
    shown, of = len(picture["rows"]), picture["of"]
    return "" if shown == of else f"{shown} of {of:,} samples of this picture are shown"


def _lead(found: Scan) -> str:
    done = ", ".join(manifest.pass_name for manifest in found.passes)
    versions = found.config.get("versions", {})
    parts = [f"Committed passes: {done}."]
    if "infinity-mm" in versions:
        parts.append(f"Made with infinity-mm {versions['infinity-mm']}.")
    if found.config.get("commit"):
        parts.append(f"Commit {found.config['commit'][:12]}.")
    if found.passes[-1].pass_name != "publish":
        parts.append("The run is not finished: later passes are not committed.")
    return " ".join(parts)


def _numbers(found: Scan) -> list[tuple[str, str]]:
    totals = {manifest.pass_name: manifest.totals for manifest in found.passes}
    rows = found.counts.rows
    numbers = [
        ("files read", totals.get("read", {}).get("in")),
        ("distinct images", totals.get("unique", {}).get("out")),
        ("pairs kept", rows["kept"] + rows["rewritten"] if "journeys" in totals else None),
        ("of those rewritten", rows["rewritten"] if "journeys" in totals else None),
        ("dropped on the way", rows["dropped"] if "journeys" in totals else None),
        ("quarantined", sum(t["quarantined"] for t in totals.values())),
        ("rows published", totals.get("publish", {}).get("out")),
    ]
    return [(name, f"{value:,}") for name, value in numbers if value is not None]


def _funnel(rows: Sequence[StageRow]) -> str:
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


def _charts(found: Scan) -> str:
    counts = found.counts
    edges = [f"{int(1 + i / 2)}" if i % 2 == 0 else "" for i in range(SCORE_BINS)]
    lengths = [f"{edge}+" if edge < 1024 else f"{edge // 1024}k+" for edge in LENGTH_EDGES]
    what = "all questions and pairs of the run"
    parts = [
        charts.bar_table("Instruction types", f"{what}, by type", counts.types, FATES, most=_MOST_NAMES),
        charts.columns("Scores", "judged pairs per half point, by fate", edges, counts.scores, FATES),
        charts.columns("Length of answers", "characters", lengths, {"kept": counts.answer_chars}, ["kept"]),
        charts.columns(
            "Length of questions", "characters", lengths, {"kept": counts.question_chars}, ["kept"]
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


def _tables(found: Scan) -> list[tuple[str, str, list[list[Any]]]]:
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
    """What the wind tunnel's demo adds to its summary: figures against the truth."""
    try:
        summary = json.loads(files.read(run.path("summary.json")))
    except FileNotFoundError:
        return
    figures = ("answer_accuracy_before", "answer_accuracy_after", "right_answers_kept_share")
    rows = [[name.replace("_", " "), summary[name]] for name in figures if name in summary]
    if rows:
        yield "Against the truth", "Known in the drawn world only.", [["", "value"], *rows]
    for name, heading in (
        ("rewrites", "Rewrites against the truth"),
        ("student_accuracy", "Students on held-out scenes"),
    ):
        if isinstance(summary.get(name), Mapping):
            yield heading, "From summary.json.", [["", "value"], *([k, v] for k, v in summary[name].items())]


def _notes(found: Scan, shelf: _Shelf, config: ReportConfig) -> list[str]:
    num = found.counts.rows.total()
    notes = [
        f"The funnel and the distributions count everything: {num:,} questions and pairs with the end each came to.",
        f"The pictures are a sample: {len(shelf.rows):,} samples are on the page, chosen by a hash of their ids and "
        f"seed {config.seed}, so the same run and seed always show the same ones.",
        f"Texts longer than {config.text_chars:,} characters are cut and say so. Control and direction characters are "
        "written out as ⟨U+…⟩.",
        f"Pictures are shrunk to at most {config.thumbnail_px} px and each stands on the page once.",
        "A question that was answered in three styles counts three times as a pair, and once where it was dropped "
        "before.",
    ]
    if shelf.rows_left_out:
        notes.append(f"{shelf.rows_left_out:,} more chosen samples were left out to keep the page small.")
    for reason, number in sorted(shelf._thumbs.left_out.items()):
        text = "to keep the page small" if reason == OVER_BUDGET else f"because of {reason}"
        notes.append(f"{number:,} pictures are not shown, {text}.")
    return notes
