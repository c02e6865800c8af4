"""A scene: everything that is true about one image of the drawn world, and nothing else."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from infinity_mm.windtunnel.words import PLACES

HELD_OUT_SHARE = 10
"""One scene in so many belongs to the held-out world."""


class Box(NamedTuple):
    """A rectangle, left, top, right, bottom; in pixels in a layout, in 0..1 in a question."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One drawn object of the family `shapes`."""

    shape: str
    color: str
    size: str
    row: int
    """Row of the 3 x 3 grid of places, 0 at the top."""
    column: int
    """Column of the 3 x 3 grid of places, 0 at the left."""

    @property
    def place(self) -> str:
        """Name of the place, such as `top left`."""
        return PLACES[self.row][self.column]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesFacts:
    """Colored shapes on a plain background, in reading order."""

    things: tuple[Thing, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: int
    color: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartFacts:
    """A bar chart; `title` is empty when none is drawn."""

    bars: tuple[Bar, ...]
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table: the item and its numbers, one for each header after the first."""

    item: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFacts:
    """A table of items and numbers; the first header names the column of items."""

    headers: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a document; on a sign the label is empty."""

    label: str
    value: str

    @property
    def text(self) -> str:
        """The line as it is drawn."""
        return f"{self.label}: {self.value}" if self.label else self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentFacts:
    """A sign (words on a colored background) or a form (labels and values on white)."""

    kind: Literal["sign", "form"]
    background: str
    """Color name of a sign; empty on a form."""
    lines: tuple[Line, ...]


Facts = ShapesFacts | ChartFacts | TableFacts | DocumentFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosmetic:
    """What is drawn but never asked about."""

    seed: int
    """Decides jitter, exact shades and background tint."""
    font_px: int
    """Size of the type; 0 where no text is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One image of the drawn world as a graph of facts."""

    family: str
    """One of `words.FAMILIES`."""
    width: int
    """Width of the image, in pixels."""
    height: int
    """Height of the image, in pixels."""
    facts: Facts
    """What is true about the image; its class belongs to the family."""
    cosmetic: Cosmetic
    """What is drawn but never asked about."""

    def to_json(self) -> str:
        """The scene as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Scene":
        """Read back what `to_json` wrote."""
        data = json.loads(text)
        return Scene(
            family=data["family"],
            width=data["width"],
            height=data["height"],
            facts=_facts(data["family"], data["facts"]),
            cosmetic=Cosmetic(**data["cosmetic"]),
        )

    def content_hash(self) -> str:
        """SHA-256 of family and facts: image size and cosmetics do not change what an image says."""
        content = json.dumps([self.family, asdict(self.facts)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def is_held_out(self) -> bool:
        """Whether the scene belongs to the fixed tenth of the world that nothing is trained on."""
        return int(self.content_hash()[:12], 16) % HELD_OUT_SHARE == 0


def _facts(family: str, data: Mapping[str, Any]) -> Facts:
    if family == "shapes":
        return ShapesFacts(things=tuple(Thing(**thing) for thing in data["things"]))
    if family == "chart":
        return ChartFacts(bars=tuple(Bar(**bar) for bar in data["bars"]), title=data["title"])
    if family == "table":
        rows = tuple(Row(item=row["item"], numbers=tuple(row["numbers"])) for row in data["rows"])
        return TableFacts(headers=tuple(data["headers"]), rows=rows)
    lines = tuple(Line(**line) for line in data["lines"])
    return DocumentFacts(kind=data["kind"], background=data["background"], lines=lines)
