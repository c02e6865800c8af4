"""Exact captions: dense ones that mention every fact in a fixed order, and short ones."""

import random

from infinity_mm.windtunnel.kinds.any_image import image_kind
from infinity_mm.windtunnel.scene import ChartFacts, Scene, ShapesFacts, TableFacts, Thing
from infinity_mm.windtunnel.words import listing, plural, with_article


def dense(scene: Scene, rng: random.Random) -> str:
    """Every fact of the scene in reading order; `rng` chooses between two openings."""
    facts = scene.facts
    shows = rng.choice(("The image shows", "This is"))
    if isinstance(facts, ShapesFacts):
        things = [f"{with_article(f'{t.size} {t.color} {t.shape}')} at the {t.place}" for t in facts.things]
        return f"{shows} {listing(things)}."
    if isinstance(facts, ChartFacts):
        title = f" titled {facts.title}" if facts.title else ""
        bars = " ".join(f"{bar.label} is {bar.value} and {bar.color}." for bar in facts.bars)
        return f"{shows} a bar chart{title} with {_counted(len(facts.bars), 'bar')}. {bars}"
    if isinstance(facts, TableFacts):
        rows = " ".join(f"{row.item}: {_cells(facts, row.numbers)}." for row in facts.rows)
        return f"{shows} a table with {listing(list(facts.headers))}. {rows}"
    kind = f"{facts.background} sign" if facts.kind == "sign" else "form"
    lines = " ".join(f"Line {i} says {line.text}." for i, line in enumerate(facts.lines, start=1))
    return f"{shows} {with_article(kind)} with {_counted(len(facts.lines), 'line')}. {lines}"


def short(scene: Scene, rng: random.Random) -> str:
    """One sentence with the gist; `rng` chooses between two openings."""
    return f"{rng.choice(('The image shows', 'This is'))} {_gist(scene)}."


def _gist(scene: Scene) -> str:
    facts = scene.facts
    if isinstance(facts, ShapesFacts):
        return listing([_short_name(thing) for thing in facts.things])
    if isinstance(facts, ChartFacts):
        return f"a bar chart of {listing([bar.label for bar in facts.bars])}"
    if isinstance(facts, TableFacts):
        return f"a table of {listing([row.item for row in facts.rows])}"
    if facts.kind == "sign":
        return (
            f"{with_article(facts.background)} sign that says {' '.join(line.value for line in facts.lines)}"
        )
    return f"{with_article(image_kind(facts))} with {listing([line.label for line in facts.lines])}"


def _short_name(thing: Thing) -> str:
    return with_article(f"{thing.color} {thing.shape}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else plural(noun)}"


def _cells(facts: TableFacts, numbers: tuple[int, ...]) -> str:
    return listing([f"{header} {number}" for header, number in zip(facts.headers[1:], numbers, strict=True)])
