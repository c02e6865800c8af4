"""The page of a comparison: the table, then picture by picture what each run asked and kept.

Comparison --a fixed shuffle of images--> pictures within a budget --> one HTML file without scripts
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from infinity_mm.record import digest
from infinity_mm.report.compare import Comparison
from infinity_mm.report.page import table
from infinity_mm.report.text import clip
from infinity_mm.report.thumbs import Thumbnail, Thumbnails
from infinity_mm.report.works import Shown, Work
from infinity_mm.runtime.run import Run

_THUMB_PX = 320
_THUMB_BYTES = 8_000_000
_TEXT_CHARS = 600
_OWN_CSS = (
    ".figures .box:first-child{grid-column:1/-1}.figures .box{overflow-x:auto}"
    ".side{display:grid;grid-template-columns:minmax(140px,1fr) 2fr 2fr;gap:1rem;margin:0 0 1rem}"
    ".side img{max-width:100%;border-radius:8px}.side ul{margin:0;padding-left:1.1rem}.side li{margin:0 0 .6rem}"
    ".ended{opacity:.65}.meta{font-size:.8rem}@media(max-width:700px){.side{grid-template-columns:1fr}}"
)


def render_comparison(found: Comparison, *, names: tuple[str, str], runs: tuple[str, str], most: int) -> str:
    """The page as one HTML text; `most` images are shown."""
    css = resources.files("infinity_mm.report").joinpath("page.css").read_text(encoding="utf-8") + _OWN_CSS
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}'"
    )
    thumbs = Thumbnails(images=Run(runs[0]).images, px=_THUMB_PX, max_bytes=_THUMB_BYTES)
    shown = sorted(found.common, key=lambda sha256: digest("compare", sha256))[:most]
    sides = "".join(_image(*found.common[sha256], names, thumbs) for sha256 in shown)
    tables = "".join(table(*each) for each in tables_of(found, names))
    title = escape(clip(f"{names[0]} and {names[1]}", 200))
    notes = f"{len(shown):,} of {len(found.common):,} images that both runs have, chosen by a hash. "
    notes += f"{found.only_a:,} images only in A and {found.only_b:,} only in B are left out everywhere. "
    notes += "Scores of two different judges cannot be compared."
    notes += f" {simulated}" if (simulated := simulated_note(found, names)) else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{css}</style></head><body>'
        f'<header><h1><bdi>{title}</bdi></h1><p class="lead">{escape(notes)}</p></header><main>'
        f'<section><h2>Figures</h2><div class="grid figures">{tables}</div></section>'
        f"<section><h2>Picture by picture</h2>{sides}</section></main>"
        "<footer>Written by <code>infinity-mm compare</code>; nothing on this page is loaded from elsewhere.</footer>"
        "</body></html>"
    )


def simulated_note(found: Comparison, names: tuple[str, str]) -> str:
    """Which of the two no model said, empty if both are real."""
    made_up = [name for name, is_simulated in zip(names, found.simulated, strict=True) if is_simulated]
    return f"Simulated, no model said any of it: {' and '.join(made_up)}." if made_up else ""


def tables_of(found: Comparison, names: tuple[str, str]) -> list[tuple[str, str, list[list[Any]]]]:
    """(heading, caption, rows), the first row the column names."""
    figures: list[list[Any]] = [["", *names, "B - A", "95 % interval"]]
    for one in found.figures:
        interval = "" if one.low is None else f"{one.low:+.3g} to {one.high:+.3g}"
        figures.append([one.name, round(one.a, 3), round(one.b, 3), round(one.b - one.a, 3), interval])
    ends = [["end", *names], *([name, a, b] for name, (a, b) in found.ends.items())]
    types = [["type", *names], *([name, a, b] for name, (a, b) in found.types.items())]
    settings = [["setting", *names], *([key, a, b] for key, (a, b) in found.settings.items())]
    return [
        (
            "Both on the same images",
            "An interval that leaves out 0 is a difference; by resampling images.",
            figures,
        ),
        ("Why not kept", "Questions and pairs by stage and reason.", ends),
        ("Instruction types", "Kept pairs.", types),
        ("What differs in the configurations", "Keys of run.json.", settings),
    ]


def _image(a: Work, b: Work, names: tuple[str, str], thumbs: Thumbnails) -> str:
    thumb = thumbs.make(a.image)
    picture = (
        f'<img alt="" width="{thumb.width}" height="{thumb.height}" src="data:image/webp;base64,{thumb.webp}">'
        if isinstance(thumb, Thumbnail)
        else f"<p>{escape(thumb)}</p>"
    )
    return f'<div class="box side"><div>{picture}</div>{_column(names[0], a)}{_column(names[1], b)}</div>'


def _column(name: str, work: Work) -> str:
    items = [
        *(_item(one, "") for one in _in_order(work.kept)),
        *(_item(one, "ended") for one in _in_order(work.ended)),
    ]
    return f"<div><h3><bdi>{escape(clip(name, 100))}</bdi></h3><ul>{''.join(items)}</ul></div>"


def _in_order(pairs: Sequence[Shown]) -> list[Shown]:
    return sorted(pairs, key=lambda one: (one.type, one.question, one.style))


def _item(one: Shown, kind: str) -> str:
    score = "" if one.score is None else f", score {one.score:.1f}"
    style = f", {one.style}" if one.style else ""
    meta = escape(f"{one.type}{style}{score}, {one.end}")
    question, answer = escape(clip(one.question, _TEXT_CHARS)), escape(clip(one.answer, _TEXT_CHARS))
    return (
        f'<li class="{kind}"><bdi dir="auto"><b>{question}</b></bdi><br><bdi dir="auto">{answer}</bdi>'
        f'<br><span class="meta">{meta}</span></li>'
    )
