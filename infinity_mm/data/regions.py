"""Boxes and points as text, in the form each model family was taught.

    "left of <|region 0 0.1 0.2 0.3 0.4|>" --write_regions(notations' grid, frames)--> "left of [100, 200, 300, 400]"

Data holds coordinates from 0 to 1 of the upright original, because one family counts pixels of the resized image and
another thousandths. The written number is the nearest on the family's grid: never off by more than half a unit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from infinity_mm.errors import explain
from infinity_mm.record import ImageSlot, Part, Region, Text

Frame = tuple[int, int]
"""(width, height) in pixels, of the resized image a family counts in."""

_UNIT = r" (?:0(?:\.\d+)?|1(?:\.0+)?)"
_MARKER = re.compile(rf"<\|region (\d+)((?:{_UNIT}){{2}}(?:(?:{_UNIT}){{2}})?)\|>")
_WRITTEN = re.compile(r"<\|region (\d+)((?: -?\d+(?:\.\d+)?)+)\|>")
"""What is meant as a marker, right or wrong."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SAID = r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)"
_KEY = r"(?:[xy]_?\w{0,4}|left|top|right|bottom)[\"']?\s*[:=]"
_RUN = rf"{_SAID}(?:(?:[\s,;()\[\]\"']|{_KEY})+{_SAID})*"
_WRAPPED = re.compile(rf"(?:<\|?\w+\|?>)?[\[(]*({_RUN})[\])]*(?:</\w+>|<\|\w+\|>)?")
"""Numbers in a row, with the brackets and marks that families put around a box or point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notation:
    """How one family writes a box and a point."""

    box: str
    """Text with four `{}`: left, top, right, bottom."""
    point: str
    """Text with two `{}`: x, y."""
    grid: int | None
    """Units a side has; None counts pixels of the frame."""
    fraction: bool = False
    """Write units as a decimal fraction of the side, with the digits that the grid needs."""

    def write(self, coords: Sequence[float], frame: Frame) -> str:
        """The text of a box (four numbers) or a point (two), each 0 to 1."""
        units = [round(value * side) for value, side in zip(coords, self._sides(frame) * 2)]
        texts = [str(unit) for unit in units]
        if self.fraction:
            assert self.grid is not None
            digits = len(str(self.grid)) - 1
            texts = [f"{unit / self.grid:.{digits}f}" for unit in units]
        before, *after = (self.box if len(coords) == 4 else self.point).split("{}")
        return before + "".join(number + text for number, text in zip(texts, after, strict=True))

    def read(self, text: str, frame: Frame) -> tuple[float, ...]:
        """The coordinates, 0 to 1, of what `write` wrote; raises UserError for other text."""
        for form, count in ((self.box, 4), (self.point, 2)):
            pattern = re.escape(form).replace(re.escape("{}"), f"({_NUMBER.pattern})")
            if found := re.fullmatch(pattern, text.strip()):
                sides = (1, 1) if self.fraction else self._sides(frame)
                return tuple(float(n) / side for n, side in zip(found.groups(), sides * (count // 2)))
        raise explain(
            what=f"{text!r} is no box or point in this notation",
            where="Notation.read",
            fix=f"expected {self.box} or {self.point}",
        )

    def _sides(self, frame: Frame) -> tuple[int, int]:
        return frame if self.grid is None else (self.grid, self.grid)


THOUSANDTHS = Notation(box="[{}, {}, {}, {}]", point="[{}, {}]", grid=1000)
"""For texts that are for no family in particular."""


def region_marker(region: Region) -> str:
    """How a box or point stands in a message's text until the family is known; `region.index` counts the images."""
    return f"<|region {region.index} {' '.join(f'{value:.6f}' for value in region.coords)}|>"


def write_regions(text: str, notation: Notation, frames: Sequence[Frame]) -> str:
    """`text` with every marker written in `notation`.

    Raises UserError for a marker of an image that is not there and for one that is not two or four numbers, 0 to 1.
    """

    def written(marker: re.Match[str]) -> str:
        if _MARKER.fullmatch(marker[0]) is None:
            raise explain(
                what=f"{marker[0]} is no point or box: two or four numbers from 0 to 1",
                where="a message's text",
                fix="write coordinates as fractions of the upright image's sides",
            )
        index = int(marker[1])
        if index >= len(frames):
            raise explain(
                what=f"{marker[0]} speaks of image {index}, but there are {len(frames)} images",
                where="a message's text",
                fix="count images from 0",
            )
        return notation.write([float(value) for value in marker[2].split()], frames[index])

    return _WRITTEN.sub(written, text)


def parts_of(text: str) -> tuple[Text | Region, ...]:
    """A text with markers as parts; one `Text` for a text without them."""
    parts: list[Text | Region] = []
    end = 0
    for marker in _MARKER.finditer(text):
        if marker.start() > end:
            parts.append(Text(text[end : marker.start()]))
        parts.append(Region(int(marker[1]), tuple(float(value) for value in marker[2].split())))
        end = marker.end()
    if end < len(text) or not parts:
        parts.append(Text(text[end:]))
    return tuple(parts)


def text_of(parts: Sequence[Part]) -> str:
    """The inverse of `parts_of`; image slots are left out."""
    return "".join(
        part.text if isinstance(part, Text) else region_marker(part)
        for part in parts
        if not isinstance(part, ImageSlot)
    )


def find_numbers(text: str, count: int) -> list[tuple[tuple[float, ...], tuple[int, int]]]:
    """Runs of `count` numbers, as any family writes boxes (4) and points (2), with where they stand in the text.

    `[1, 2, 3, 4]`, `<box>[[1, 2, 3, 4]]</box>`, `(1,2),(3,4)`, `{"bbox_2d": [1, 2, 3, 4]}`, `<point x="1" y="2">`.
    Of a run of several times so many numbers each part is one, at the place of the whole.
    """
    found: list[tuple[tuple[float, ...], tuple[int, int]]] = []
    for run in _WRAPPED.finditer(text):
        numbers = [float(number) for number in re.findall(_SAID, run[1])]
        if len(numbers) % count == 0:
            groups = [tuple(numbers[i : i + count]) for i in range(0, len(numbers), count)]
            found += [(group, run.span()) for group in groups]
    return found
