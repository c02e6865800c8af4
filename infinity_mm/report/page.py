"""One self-contained HTML page: what can be read without scripts, and a gallery that a script builds from data.

Everything that came from an image, a file name or a model is text: escaped in the static part, and in the gallery
a JSON string that the script puts into text nodes only. The page's own policy forbids anything else: no connection,
no script or style but its own (by hash), no markup from strings.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from infinity_mm.report.text import clip, json_block

_CELL_CHARS = 400


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What the script shows."""

    rows: Sequence[Mapping[str, Any]]
    images: Sequence[Mapping[str, Any]]
    sections: Sequence[Mapping[str, Any]]
    thumbnails: Mapping[str, str]
    """Element id -> base64 of a WebP."""
    options: Mapping[str, Sequence[str]]
    """Filter (`type`, `fate`, `end`, `script`) -> its values."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """All of it; the `html` parts are markup made by this package, everything else is text."""

    title: str
    lead: str
    numbers: Sequence[tuple[str, str]]
    """(name, value) at the top."""
    funnel_html: str
    charts_html: str
    tables: Sequence[tuple[str, str, Sequence[Sequence[Any]]]]
    """(heading, caption, rows), the first row the column names."""
    notes: Sequence[str]
    """What was sampled out of what, and what is not on the page."""
    gallery: Gallery


def render_page(page: Page) -> str:
    """The page as one HTML text."""
    css, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(css)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    numbers = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.numbers
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in page.notes)
    tables = "".join(table(heading, caption, rows) for heading, caption, rows in page.tables)
    title = f'<bdi dir="auto">{escape(clip(page.title, 200))}</bdi>'
    # The data stands last, so that the figures are painted before it is read.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(clip(page.title, 200))}</title><style>{css}</style></head><body>"
        '<a class="skip" href="#gallery">Skip to the pictures</a>'
        f'<header><h1>{title}</h1><p class="lead">{escape(page.lead)}</p>'
        '<nav aria-label="On this page"><ul><li><a href="#funnel">What became of everything</a></li>'
        '<li><a href="#gallery">Pictures</a></li><li><a href="#charts">Distributions</a></li>'
        '<li><a href="#cost">Throughput and cost</a></li><li><a href="#notes">What was sampled</a></li></ul></nav>'
        f'<dl class="big-numbers">{numbers}</dl></header><main>'
        f'<section id="funnel" aria-labelledby="h-funnel"><h2 id="h-funnel">What became of everything</h2>'
        f"{page.funnel_html}</section>"
        f"{_gallery(page.gallery)}"
        f'<section id="charts" aria-labelledby="h-charts"><h2 id="h-charts">Distributions</h2>{page.charts_html}'
        "</section>"
        '<section id="cost" aria-labelledby="h-cost"><h2 id="h-cost">Throughput and cost</h2>'
        f'<div class="grid">{tables}</div></section>'
        '<section id="notes" aria-labelledby="h-notes"><h2 id="h-notes">What was sampled out of what</h2>'
        f'<ul class="box-notes">{notes}</ul></section></main>'
        "<footer>Written by <code>infinity-mm report</code>; nothing on this page is loaded from elsewhere.</footer>"
        f"{_dialog()}{_data(page.gallery)}<script>{script}</script></body></html>"
    )


def table(heading: str, caption: str, rows: Sequence[Sequence[Any]]) -> str:
    """A table of text and numbers; empty for no rows."""
    if len(rows) < 2:
        return ""
    head = "".join(
        f'<th scope="col"{_numeric(rows[1][i])}>{escape(str(cell))}</th>' for i, cell in enumerate(rows[0])
    )
    body = "".join(
        f'<tr><th scope="row">{escape(clip(str(row[0]), _CELL_CHARS))}</th>'
        + "".join(f"<td{_numeric(cell)}>{escape(clip(_number(cell), _CELL_CHARS))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    return (
        f'<div class="box"><h3>{escape(heading)}</h3><div class="scroll-x"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _numeric(cell: Any) -> str:
    return ' class="num"' if isinstance(cell, (int, float)) else ""


def _number(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:,.3f}".rstrip("0").rstrip(".") if abs(cell) < 100 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _gallery(gallery: Gallery) -> str:
    def choose(id_: str, label: str) -> str:
        options = "".join(
            f'<option value="{escape(value)}">{escape(value)}</option>' for value in gallery.options[id_]
        )
        return f'<label>{label}<select id="{id_}"><option value="">all</option>{options}</select></label>'

    def bound(id_: str, label: str) -> str:
        return f'<label class="narrow">{label}<input id="{id_}" type="number" min="1" max="10" step="0.5"></label>'

    return (
        '<noscript><p class="box">The pictures need JavaScript, which stays on this page; the figures do not.</p>'
        '</noscript><section id="gallery" aria-labelledby="h-gallery" tabindex="-1" hidden>'
        '<h2 id="h-gallery">Pictures, questions, answers</h2>'
        '<div id="tabs" class="tabs" role="tablist" aria-label="Sections"></div>'
        '<div id="panel" role="tabpanel" aria-labelledby="tab0"><p id="about"></p>'
        '<form id="filters" aria-label="Filters"><label class="wide">Search in text, ids, file names'
        '<input id="search" type="search" autocomplete="off"></label>'
        + choose("type", "Instruction type")
        + choose("fate", "Fate")
        + choose("end", "Stage and reason")
        + choose("script", "Script")
        + bound("low", "Score from")
        + bound("high", "Score to")
        + '<button type="reset">Clear filters</button></form>'
        '<p id="count" role="status" aria-live="polite"></p><div id="cards"></div>'
        '<button type="button" id="more">Show more</button></div></section>'
    )


def _dialog() -> str:
    return (
        '<dialog id="dialog" aria-labelledby="shown-title"><div class="bar-buttons"><span id="place"></span>'
        '<button type="button" id="previous" aria-keyshortcuts="ArrowLeft">← Previous</button>'
        '<button type="button" id="next" aria-keyshortcuts="ArrowRight">Next →</button>'
        '<button type="button" id="close" aria-keyshortcuts="Escape">Close</button></div>'
        '<div id="shown"></div></dialog>'
    )


def _data(gallery: Gallery) -> str:
    thumbs = "".join(
        f'<script type="text/plain" id="{id_}">{webp}</script>' for id_, webp in gallery.thumbnails.items()
    )
    rest = {"rows": gallery.rows, "images": gallery.images, "sections": gallery.sections}
    return f'{thumbs}<script type="application/json" id="data">{json_block(rest)}</script>'


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return resources.files("infinity_mm.report").joinpath(name).read_text(encoding="utf-8")
