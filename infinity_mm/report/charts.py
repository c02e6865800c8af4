"""Small charts as HTML tables with inline SVG bars: the numbers are text, so they can be read, copied and spoken.

counts by name and fate --bar_table--> one row each        counts per bin --columns--> one SVG
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from infinity_mm.report.text import clip

_NAME_CHARS = 120


def stacked_bar(parts: Mapping[str, int], whole: int) -> str:
    """A bar of 1000 units' length; `parts` by fate, in order, out of `whole`. Hidden from screen readers."""
    left, rects = 0.0, []
    for fate, number in parts.items():
        width = 1000 * number / max(1, whole)
        if number:
            # A sliver of what is there but rare, or it looks like nothing.
            shown = max(width, 4.0)
            rects.append(
                f'<rect class="{fate}-f" x="{min(left, 996):.1f}" y="0" width="{shown:.1f}" height="10"/>'
            )
        left += width
    return (
        '<svg class="b" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" x="0" y="0" width="1000" height="10"/>{"".join(rects)}</svg>'
    )


def bar_table(
    heading: str, caption: str, table: Mapping[str, Mapping[str, int]], fates: Sequence[str], *, most: int
) -> str:
    """Names with their counts by fate, most first; beyond `most` names the rest is one row."""
    rows = sorted(
        ((sum(row.values()), name, row) for name, row in table.items()), key=lambda r: (-r[0], r[1])
    )
    rest = rows[most:]
    if rest:
        together = {fate: sum(row.get(fate, 0) for _, _, row in rest) for fate in fates}
        rows = [*rows[:most], (sum(n for n, _, _ in rest), f"{len(rest)} others", together)]
    longest = max((number for number, _, _ in rows), default=0)
    body = "".join(
        f'<tr><th scope="row"><bdi dir="auto">{escape(clip(name, _NAME_CHARS))}</bdi></th><td class="bar">'
        f"{stacked_bar({fate: row.get(fate, 0) for fate in fates}, longest)}</td>"
        f'<td class="num">{number:,}</td><td class="num">{_share(row)}</td></tr>'
        for number, name, row in rows
    )
    if not rows:
        return ""
    return (
        f'<div class="box"><h3>{escape(heading)}</h3><table class="bars"><caption>{escape(caption)}</caption>'
        '<thead><tr><th scope="col">name</th><td></td><th scope="col" class="num">number</th>'
        f'<th scope="col" class="num">kept</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def columns(
    heading: str,
    caption: str,
    labels: Sequence[str],
    table: Mapping[str, Sequence[int]],
    fates: Sequence[str],
) -> str:
    """Columns over bins, stacked by fate; the same numbers follow as a table that opens."""
    totals = [sum(table[fate][i] for fate in fates if fate in table) for i in range(len(labels))]
    if not sum(totals):
        return ""
    width, height, base = 420, 150, 128
    step = width / len(labels)
    rects = []
    for i in range(len(labels)):
        top = float(base)
        for fate in fates:
            number = table.get(fate, [0] * len(labels))[i]
            tall = (base - 14) * number / max(totals)
            if number:
                tall = max(tall, 1.0)
                top -= tall
                rects.append(
                    f'<rect class="{fate}-f" x="{i * step + 1:.1f}" y="{top:.1f}" width="{step - 2:.1f}" '
                    f'height="{tall:.1f}"/>'
                )
    every = 1 if len(labels) <= 10 else 2
    ticks = "".join(
        f'<text x="{(i + 0.5) * step:.1f}" y="{height - 6}" text-anchor="middle">{escape(label)}</text>'
        for i, label in enumerate(labels)
        if i % every == 0
    )
    peak = max(totals)
    at = totals.index(peak)
    most = f'<text x="{(at + 0.5) * step:.1f}" y="10" text-anchor="middle">{peak:,}</text>'
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="num">{total:,}</td></tr>'
        for label, total in zip(labels, totals)
    )
    return (
        f'<div class="box"><h3>{escape(heading)}</h3>'
        f'<svg class="h" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(heading)}: {escape(caption)}">'
        f'<line class="axis" x1="0" y1="{base}" x2="{width}" y2="{base}"/>{"".join(rects)}{ticks}{most}</svg>'
        f"<details><summary>{escape(caption)}</summary><table><tbody>{rows}</tbody></table></details></div>"
    )


def key(fates: Sequence[str]) -> str:
    """What the colours mean."""
    items = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{fate}-f" width="10" height="10" rx="2"/></svg>'
        f"{fate}</li>"
        for fate in fates
    )
    return f'<ul class="key">{items}</ul>'


def _share(row: Mapping[str, int]) -> str:
    total = sum(row.values())
    kept = row.get("kept", 0) + row.get("rewritten", 0)
    return f"{kept / total:.0%}" if total else ""
