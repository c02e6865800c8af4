"""One self-contained HTML page of a run: the funnel, the figures, and pictures with what was kept and dropped.

Everything that came from an image, a file name or a model is escaped; nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from PIL import Image

THUMBNAIL_PX = 256
"""Longest side of a picture on the page."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question and answer with what became of it."""

    question: str
    answer: str
    style: str
    type: str
    score: float | None
    fate: str
    """kept, rewritten, or dropped."""
    reason: str = ""
    previous: str = ""
    """The answer that a rewrite replaced."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture and all pairs that were made of it."""

    id: str
    image: bytes
    """Encoded bytes."""
    caption: str
    """Source, size and tags, in one line."""
    pairs: Sequence[Pair]


def render_page(
    *, title: str, tables: Sequence[tuple[str, Sequence[Sequence[Any]]]], cards: Sequence[Card]
) -> str:
    """The page as one HTML text; each table is (heading, rows), its first row the column names."""
    body = "".join(_table(heading, rows) for heading, rows in tables)
    pictures = "".join(_card(card) for card in cards)
    css = resources.files("infinity_mm.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{css}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p><label><input type=checkbox id=dropped checked> "
        "show dropped pairs</label></p></header>"
        f"<main><section class=tables>{body}</section><section class=cards>{pictures}</section></main>"
        "</body></html>"
    )


def table_rows(mapping: Mapping[str, Any], columns: tuple[str, str]) -> list[list[Any]]:
    """A flat mapping as rows under two column names."""
    return [list(columns), *([key, value] for key, value in mapping.items())]


def _table(heading: str, rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_number(cell))}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<article><h2>{escape(heading)}</h2>{table}</article>"


def _number(cell: Any) -> str:
    return f"{cell:.3f}".rstrip("0").rstrip(".") if isinstance(cell, float) else str(cell)


def _card(card: Card) -> str:
    pairs = "".join(_pair(pair) for pair in card.pairs)
    return (
        f"<figure><img alt='' src='{_thumbnail(card.image)}'>"
        f"<figcaption>{escape(card.id)} · {escape(card.caption)}</figcaption><ul>{pairs}</ul></figure>"
    )


def _pair(pair: Pair) -> str:
    score = "" if pair.score is None else f"<b title='judge, 1 to 10'>{pair.score:.1f}</b>"
    reason = f" <i>{escape(pair.reason)}</i>" if pair.reason else ""
    before = f"<del>{escape(pair.previous)}</del> " if pair.previous else ""
    return (
        f"<li class='{escape(pair.fate)}'><span class=q>{escape(pair.question)}</span>"
        f"<span class=a>{before}{escape(pair.answer)}</span>"
        f"<span class=m>{score} {escape(pair.fate)}{reason} · {escape(pair.style)} · {escape(pair.type)}</span></li>"
    )


def _thumbnail(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    if max(picture.size) > THUMBNAIL_PX:
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
