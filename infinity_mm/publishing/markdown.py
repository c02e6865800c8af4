"""Small pieces of cards: tables and text that came from a model or a file name, made harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import yaml

_SPECIAL = re.compile(r"([\\`*_\[\]|#~!])")
CELL_CHARS = 160
"""Longer texts in a table are cut, with a mark."""


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block that the Hub reads."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Markdown lines; numbers to the right."""
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
        for i in range(len(columns))
    ]
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return lines


def safe(text: str, *, max_chars: int = CELL_CHARS) -> str:
    """Text of unknown origin on one line: no markup, no HTML, no end of a table cell."""
    one_line = " ".join(text.split())
    cut = one_line if len(one_line) <= max_chars else one_line[: max_chars - 1] + "…"
    return _SPECIAL.sub(r"\\\1", escape(cut, quote=False))


def size(number: int) -> str:
    """Bytes for people: 1.2 GB."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)
