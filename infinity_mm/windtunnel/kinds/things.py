"""How a phrase such as `large red circle` names an object of a scene, and how an object is changed."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Final

from infinity_mm.windtunnel.kinds.base import Args, replaced
from infinity_mm.windtunnel.scene import ShapesFacts, Thing
from infinity_mm.windtunnel.words import PLACE_NAMES

FAMILIES: Final = ("shapes",)
MAX_THINGS: Final = 4
FULL_FORMS: Final = ("{color} {shape}", "{size} {color} {shape}")
"""Forms of a name, the shorter one first."""


def matches(thing: Thing, phrase: str) -> bool:
    """Whether every word of the phrase fits; `object` fits all of them."""
    return set(phrase.lower().split()) <= {thing.size, thing.color, thing.shape, "object"}


def the_one(facts: ShapesFacts, phrase: str) -> int | None:
    """The one object that the phrase means; None where there is none, or more than one."""
    found = [i for i, thing in enumerate(facts.things) if matches(thing, phrase)]
    return found[0] if len(found) == 1 else None


def name_of(facts: ShapesFacts, i: int, forms: tuple[str, ...]) -> str | None:
    """The first of the forms, such as `{color} {shape}`, that means this object and no other."""
    thing = facts.things[i]
    names = (form.format(size=thing.size, color=thing.color, shape=thing.shape) for form in forms)
    return next((name for name in names if the_one(facts, name) == i), None)


def names_of(facts: ShapesFacts, forms: tuple[str, ...]) -> list[Args]:
    """The arguments of a question about each object that one of the forms can name."""
    names = (name_of(facts, i, forms) for i in range(len(facts.things)))
    return [(name,) for name in names if name]


def pairs_of(facts: ShapesFacts, forms: tuple[str, ...] = FULL_FORMS) -> Iterator[tuple[int, int, str, str]]:
    """Every ordered pair of objects that can be named: their positions and their names."""
    for i, j in permutations(range(len(facts.things)), 2):
        first, second = name_of(facts, i, forms), name_of(facts, j, forms)
        if first and second:
            yield i, j, first, second


def with_thing(facts: ShapesFacts, i: int, thing: Thing) -> ShapesFacts:
    """The facts with one object exchanged."""
    return ShapesFacts(things=replaced(facts.things, i, thing))


def in_place(thing: Thing, place: str) -> Thing:
    """The same object in another place."""
    row, column = divmod(PLACE_NAMES.index(place), 3)
    return replace(thing, row=row, column=column)


def free_places(facts: ShapesFacts) -> list[str]:
    """Names of the places without an object."""
    taken = {thing.place for thing in facts.things}
    return [place for place in PLACE_NAMES if place not in taken]


def in_reading_order(things: list[Thing]) -> ShapesFacts:
    """Facts made of these objects, row by row."""
    return ShapesFacts(things=tuple(sorted(things, key=lambda thing: (thing.row, thing.column))))
