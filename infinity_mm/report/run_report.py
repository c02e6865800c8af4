"""The page of one run: read it once, choose what to show, fetch only the pictures that are shown.

run directory --scan--> counts + sections --Shelf--> gallery --render_page--> report/index.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from infinity_mm.errors import explain
from infinity_mm.report.figures import charts_html, cost_tables, funnel_html
from infinity_mm.report.page import Page, render_page
from infinity_mm.report.scan import ReportConfig, Scan, scan
from infinity_mm.report.shelf import Shelf
from infinity_mm.report.thumbs import OVER_BUDGET, Thumbnails
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files

MAX_BYTES = 25_000_000
"""Largest page."""
_THUMB_BYTES = 16_000_000


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
    found = scan(run, config)
    thumbs = Thumbnails(images=run.images, px=config.thumbnail_px, max_bytes=_THUMB_BYTES)
    shelf = Shelf(run, found, config, thumbs)
    shelf.fill()
    gallery = shelf.gallery()
    page = Page(
        title=f"Run {found.config.get('config', {}).get('name') or run.run_dir.rstrip('/').rpartition('/')[2]}",
        lead=_lead(found),
        numbers=_numbers(found),
        funnel_html=funnel_html(found.funnel),
        charts_html=charts_html(found),
        tables=cost_tables(found),
        notes=_notes(found, shelf, config, thumbs.left_out),
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


def _notes(found: Scan, shelf: Shelf, config: ReportConfig, left_out: Mapping[str, int]) -> list[str]:
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
    for reason, number in sorted(left_out.items()):
        text = "to keep the page small" if reason == OVER_BUDGET else f"because of {reason}"
        notes.append(f"{number:,} pictures are not shown, {text}.")
    return notes
