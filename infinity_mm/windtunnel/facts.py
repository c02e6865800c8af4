"""Facts about a scene, one lookup each, in any order: what a small language model learns to find things by.

A caption in reading order is written by reading on: it never asks where Salt is. `color of Salt: green.` does, and a
dozen such facts cost no more than two questions with their prompts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import permutations
from typing import TypeVar

from infinity_mm.windtunnel.scene import (
    ChartFacts,
    DocumentFacts,
    Scene,
    ShapesFacts,
    TableFacts,
    Thing,
)
from infinity_mm.windtunnel.words import COLOR_NAMES, PLACE_NAMES, SHAPES, SIGN_WORDS, plural

NUM_FACTS = 12
"""Facts in one list."""


def facts(scene: Scene, rng: random.Random) -> str:
    """Some facts of the scene, in random order, each a key and what the image shows for it."""
    if isinstance(scene.facts, ShapesFacts):
        found = list(_of_shapes(scene.facts, rng))
    elif isinstance(scene.facts, ChartFacts):
        found = list(_of_chart(scene.facts, rng))
    elif isinstance(scene.facts, TableFacts):
        found = list(_of_table(scene.facts, rng))
    else:
        found = list(_of_document(scene.facts, rng))
    chosen = rng.sample(found, min(NUM_FACTS, len(found)))
    return " ".join(f"{key}: {value}." for key, value in chosen)


Fact = tuple[str, str]
T = TypeVar("T")


def _of_shapes(scene: ShapesFacts, rng: random.Random) -> Iterator[Fact]:
    things = scene.things
    yield "objects", str(len(things))
    for names, of in (
        (COLOR_NAMES, lambda thing: thing.color),
        (SHAPES, lambda thing: thing.shape),
        (("small", "large"), lambda thing: thing.size),
    ):
        counts = Counter(map(of, things))
        for name in (*counts, rng.choice(names)):
            yield f"number of {plural(name) if name in SHAPES else name}", str(counts[name])
    places = {thing.place: thing for thing in things}
    for place in (*places, rng.choice(PLACE_NAMES)):
        yield f"at the {place}", _name(places[place]) if place in places else "nothing"
    by_name = _only({_name(thing): thing for thing in things}, Counter(_name(thing) for thing in things))
    for name, thing in by_name.items():
        yield f"place of {name}", thing.place
        yield f"size of {name}", thing.size
    by_shape = _only({t.shape: t for t in things}, Counter(t.shape for t in things))
    for shape, thing in by_shape.items():
        yield f"color of {shape}", thing.color
        yield f"place of {shape}", thing.place
    by_color = _only({t.color: t for t in things}, Counter(t.color for t in things))
    for color, thing in by_color.items():
        yield f"shape of {color}", thing.shape
        yield f"size of {color}", thing.size
    for one, other in _pairs(by_name.values(), rng):
        yield f"{_name(one)} and {_name(other)}", "same color" if one.color == other.color else "other color"
        if one.size != other.size:
            yield f"{_name(one)} or {_name(other)}, larger", _name(one if one.size == "large" else other)
        if one.column != other.column:
            yield f"{_name(one)} of {_name(other)}", "left" if one.column < other.column else "right"
        if one.row != other.row:
            yield f"{_name(one)} from {_name(other)}", "above" if one.row < other.row else "below"
    yield _name(rng.choice(things)), "yes"
    absent = f"{rng.choice(COLOR_NAMES)} {rng.choice(SHAPES)}"
    if absent not in {_name(thing) for thing in things}:
        yield absent, "no"


def _of_chart(chart: ChartFacts, rng: random.Random) -> Iterator[Fact]:
    bars = chart.bars
    yield "bars", str(len(bars))
    yield "title", chart.title or "none"
    for bar in bars:
        yield f"value of {bar.label}", str(bar.value)
        yield f"color of {bar.label}", bar.color
        yield f"{bar.color} bar", bar.label
        yield f"value of {bar.color}", str(bar.value)
    yield from _extremes("", {bar.label: bar.value for bar in bars}, rng)
    for one, other in _pairs(bars, rng):
        yield f"{one.label} plus {other.label}", str(one.value + other.value)
        if one.value > other.value:
            yield f"{one.label} minus {other.label}", str(one.value - other.value)


def _of_table(table: TableFacts, rng: random.Random) -> Iterator[Fact]:
    yield "rows", str(len(table.rows))
    yield "columns", str(len(table.headers))
    for number, header in enumerate(table.headers, 1):
        yield f"column {number}", header
        yield f"{header} in column", str(number)
    for number, row in enumerate(table.rows, 1):
        yield f"row {number}", row.item
        yield f"{row.item} in row", str(number)
    for column, header in enumerate(table.headers[1:]):
        values = {row.item: row.numbers[column] for row in table.rows}
        for item, value in values.items():
            yield f"{header} of {item}", str(value)
        yield from _extremes(f" {header}", values, rng)


def _of_document(document: DocumentFacts, rng: random.Random) -> Iterator[Fact]:
    yield "lines", str(len(document.lines))
    if document.kind == "sign":
        yield "color", document.background
        words = [line.value for line in document.lines]
        for word in (*words, *rng.sample(SIGN_WORDS, 2)):
            yield f"{word} is there", "yes" if word in words else "no"
    for number, line in enumerate(document.lines, 1):
        yield f"line {number}", line.text
        yield f"{line.value} in line", str(number)
        if line.label:
            yield f"value of {line.label}", line.value
            yield f"field of {line.value}", line.label
            yield f"{line.label} in line", str(number)


def _extremes(of: str, values: dict[str, int], rng: random.Random) -> Iterator[Fact]:
    """The highest and the lowest, and which of two is higher; where numbers are equal there is no such fact."""
    counts = Counter(values.values())
    for name, best in (("highest", max(values.values())), ("lowest", min(values.values()))):
        if counts[best] == 1:
            yield f"{name}{of}", next(key for key, value in values.items() if value == best)
    for one, other in _pairs(values, rng):
        if values[one] != values[other]:
            yield f"{one} or {other}, higher{of}", one if values[one] > values[other] else other


def _pairs(of: Iterable[T], rng: random.Random) -> list[tuple[T, T]]:
    """Two ordered pairs at most: with all of them little else would be told."""
    pairs = list(permutations(of, 2))
    return rng.sample(pairs, min(2, len(pairs)))


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def _only(things: dict[str, Thing], counts: Counter[str]) -> dict[str, Thing]:
    """Those whose name no other thing shares."""
    return {name: thing for name, thing in things.items() if counts[name] == 1}
