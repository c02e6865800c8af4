"""What a scene shows at each patch of each view: targets for training a vision tower on its own.

scene --regions, glyphs--> boxes in image pixels --plan of views--> one class per head and patch
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from infinity_mm.vision.slicing import SlicePlan
from infinity_mm.windtunnel import words, world
from infinity_mm.windtunnel.families import table
from infinity_mm.windtunnel.families.base import font
from infinity_mm.windtunnel.scene import Box, ChartFacts, Scene, ShapesFacts, TableFacts

NOTHING: Final = 0
"""Class of a patch that shows nothing a head asks for."""
UNKNOWN: Final = -100
"""Target of a patch whose right class a head does not have; it has no loss."""
POSITION_BINS: Final = 8

_WORDS: Final = tuple(
    sorted(
        {*words.ITEMS, *words.TITLES, *words.ITEM_HEADERS, *words.NUMBER_HEADERS, *words.SIGN_WORDS}
        | {*words.NAMES, *words.CITIES, *words.DAYS, *words.FIELDS}
    )
) + tuple(str(number) for number in range(100))
_CHARACTERS: Final = tuple(sorted({c for word in _WORDS for c in word} | set(words.CODE_CHARACTERS) | {":"}))
_KINDS: Final = (*words.SHAPES, "bar", "sign", "text")

HEADS: Final[dict[str, tuple[str, ...]]] = {
    "kind": _KINDS,
    "color": words.COLOR_NAMES,
    "size": words.SIZES,
    "word": _WORDS,
    "row": _WORDS,
    "column": _WORDS,
    "left_character": _CHARACTERS,
    "right_character": _CHARACTERS,
    "x": tuple(map(str, range(1, POSITION_BINS))),
    "y": tuple(map(str, range(1, POSITION_BINS))),
}
"""Head -> names of its classes after `NOTHING`; for `x` and `y`, the place in the view, 0 is the first bin.

`word` is what is written there (on a bar: its value), `row` and `column` what names its row (a table's item, a form's
field, a bar's label) and its column (a table's header). A patch is narrower than two characters of small type, so the
character in its left half and that in its right half have a head each.
"""
_CLASS: Final = {head: {name: i for i, name in enumerate(names, 1)} for head, names in HEADS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A part of the image that shows one thing."""

    box: Box
    """In image pixels."""
    names: dict[str, str]
    """Head -> name of the right class, or a name the head does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyph:
    """One drawn character."""

    character: str
    x: float
    """Its middle, in image pixels."""
    y: float
    """Its middle, in image pixels."""


def patch_labels(scene: Scene, plan: SlicePlan) -> dict[str, Int[np.ndarray, " P"]]:
    """Head -> class of each patch, views and patches in the order of the image processor."""
    x, y, width, height = _patches(scene, plan)
    targets = {head: np.full(len(x), NOTHING, dtype=np.int64) for head in HEADS}
    for region in regions(scene):
        box = region.box
        inside = (x >= box.x0) & (x < box.x1) & (y >= box.y0) & (y < box.y1)
        for head, name in region.names.items():
            targets[head][inside] = _CLASS[head].get(name, UNKNOWN)
    for glyph in glyphs(scene):
        right = glyph.x - x  # of the patch's middle
        here = np.abs(glyph.y - y) <= height / 2
        class_ = _CLASS["left_character"][glyph.character]
        targets["left_character"][here & (right < 0) & (right >= -width / 2)] = class_
        targets["right_character"][here & (right >= 0) & (right < width / 2)] = class_
    targets["x"], targets["y"] = _places(plan)
    return targets


def regions(scene: Scene) -> Iterator[Region]:
    """What is drawn where; later regions lie on top of earlier ones."""
    boxes, facts = world.boxes_px(scene), scene.facts
    if isinstance(facts, ShapesFacts):
        for i, thing in enumerate(facts.things):
            names = {"kind": thing.shape, "color": thing.color, "size": thing.size}
            yield Region(box=boxes[f"thing/{i}"], names=names)
    elif isinstance(facts, ChartFacts):
        if facts.title:
            yield Region(box=boxes["title"], names={"kind": "text", "word": facts.title})
        for i, bar in enumerate(facts.bars):
            value = {"word": str(bar.value), "row": bar.label}
            yield Region(box=boxes[f"bar/{i}"], names={"kind": "bar", "color": bar.color} | value)
            yield Region(box=boxes[f"value/{i}"], names={"kind": "text"} | value)
            yield Region(box=boxes[f"label/{i}"], names={"kind": "text", "word": bar.label, "row": bar.label})
    elif isinstance(facts, TableFacts):
        rows = table.cell_texts(facts)
        for r, row in enumerate(rows):
            for c, text in enumerate(row):
                names = {"kind": "text", "word": text, "row": row[0], "column": rows[0][c]}
                yield Region(box=boxes[f"cell/{r}/{c}"], names=names)
    else:
        if facts.kind == "sign":
            whole = Box(0, 0, scene.width, scene.height)
            yield Region(box=whole, names={"kind": "sign", "color": facts.background})
        for i, line in enumerate(facts.lines):
            box, names = boxes[f"line/{i}"], {"row": line.label} if line.label else {}
            field, _, value = line.text.rpartition(" ")
            middle = box.x0 + font(scene.cosmetic.font_px).getlength(f"{field} ") if field else box.x0
            if field:
                left = Box(box.x0, box.y0, middle, box.y1)
                yield Region(box=left, names={"kind": "text", "word": line.label} | names)
            yield Region(
                box=Box(middle, box.y0, box.x1, box.y1), names={"kind": "text", "word": value} | names
            )


def glyphs(scene: Scene) -> Iterator[Glyph]:
    """Every drawn character."""
    boxes, facts = world.boxes_px(scene), scene.facts
    if isinstance(facts, ChartFacts):
        if facts.title:
            yield from _centered(scene, boxes["title"], facts.title)
        for i, bar in enumerate(facts.bars):
            yield from _centered(scene, boxes[f"value/{i}"], str(bar.value))
            yield from _centered(scene, boxes[f"label/{i}"], bar.label)
    elif isinstance(facts, TableFacts):
        for r, row in enumerate(table.cell_texts(facts)):
            for c, text in enumerate(row):
                yield from _centered(scene, boxes[f"cell/{r}/{c}"], text)
    elif not isinstance(facts, ShapesFacts):
        for i, line in enumerate(facts.lines):
            box = boxes[f"line/{i}"]
            if facts.kind == "sign":
                yield from _centered(scene, box, line.text)
            else:
                yield from _line(scene, box, line.text, round(box.x0))


def _centered(scene: Scene, box: Box, text: str) -> Iterator[Glyph]:
    start = round((box.x0 + box.x1) / 2) - font(scene.cosmetic.font_px).getlength(text) / 2
    return _line(scene, box, text, start)


def _line(scene: Scene, box: Box, text: str, start: float) -> Iterator[Glyph]:
    type_ = font(scene.cosmetic.font_px)
    for i, character in enumerate(text):
        if character != " ":
            x = start + (type_.getlength(text[:i]) + type_.getlength(text[: i + 1])) / 2
            yield Glyph(character=character, x=x, y=round((box.y0 + box.y1) / 2))


Floats = NDArray[np.floating]


def _patches(scene: Scene, plan: SlicePlan) -> tuple[Floats, Floats, Floats, Floats]:
    """Middle x and y, width and height of every patch, in image pixels."""
    parts: list[tuple[Floats, ...]] = []
    last = plan.overview == "last"
    for place, (rows, columns) in enumerate(plan.view_shapes):
        number = (place + 1) % len(plan.views) if last else place  # the overview is number 0
        grid_columns, grid_rows = plan.grid if number and plan.grid else (1, 1)
        down, across = divmod(number - 1, grid_columns) if number else (0, 0)
        width, height = scene.width / grid_columns / columns, scene.height / grid_rows / rows
        y, x = np.meshgrid(
            (down * rows + np.arange(rows) + 0.5) * height,
            (across * columns + np.arange(columns) + 0.5) * width,
            indexing="ij",
        )
        parts.append((x.ravel(), y.ravel(), np.full(x.size, width), np.full(x.size, height)))
    x, y, width, height = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x, y, width, height


def _places(plan: SlicePlan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bins of x and y of every patch in its own view: what the tower needs its position table for."""
    xs, ys = [], []
    for rows, columns in plan.view_shapes:
        y, x = np.meshgrid(
            np.arange(rows) * POSITION_BINS // rows,
            np.arange(columns) * POSITION_BINS // columns,
            indexing="ij",
        )
        xs.append(x.ravel())
        ys.append(y.ravel())
    return np.concatenate(xs), np.concatenate(ys)
