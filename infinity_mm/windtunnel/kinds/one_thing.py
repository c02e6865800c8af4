"""Questions about one colored shape: its color, shape, size and place."""

from dataclasses import replace
from typing import Final

from infinity_mm.windtunnel.kinds.base import Args, Finding, Kind
from infinity_mm.windtunnel.kinds.things import (
    FAMILIES,
    FULL_FORMS,
    free_places,
    in_place,
    names_of,
    the_one,
    with_thing,
)
from infinity_mm.windtunnel.scene import ShapesFacts
from infinity_mm.windtunnel.words import COLOR_NAMES, PLACE_ALIASES, SHAPES, SIZES, with_article


def _attribute_kind(
    attribute: str, values: tuple[str, ...], forms: tuple[str, ...], templates: tuple[str, str]
) -> Kind:
    def find(facts: ShapesFacts, args: Args) -> Finding | None:
        i = the_one(facts, args[0])
        if i is None or set(args[0].split()) & set(values):
            return None
        value = getattr(facts.things[i], attribute)
        concludes = f"It is {with_article(value)}." if attribute == "shape" else f"The {args[0]} is {value}."
        return Finding(
            answers=(value,),
            evidence=(f"thing/{i}",),
            says=f"The {args[0]} is at the {facts.things[i].place}.",
            concludes=concludes,
        )

    def near(facts: ShapesFacts, args: Args) -> list[str]:
        return list(dict.fromkeys([*(getattr(thing, attribute) for thing in facts.things), *values]))

    def forge(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
        i = the_one(facts, args[0])
        if i is None or answer not in values:
            return None
        return with_thing(facts, i, replace(facts.things[i], **{attribute: answer}))

    return Kind[ShapesFacts](
        type=f"fine_single/attribute/{attribute}",
        families=FAMILIES,
        slots=("thing",),
        templates=templates,
        ask=lambda facts, rng: names_of(facts, forms),
        find=find,
        near=near,
        forge=forge,
    )


COLOR: Final = _attribute_kind(
    "color",
    COLOR_NAMES,
    ("{shape}", "{size} {shape}"),
    ("What color is the {thing}?", "Name the color of the {thing}."),
)
SHAPE: Final = _attribute_kind(
    "shape",
    SHAPES,
    ("{color} object", "{size} {color} object"),
    ("What shape is the {thing}?", "Name the shape of the {thing}."),
)
SIZE: Final = _attribute_kind(
    "size", SIZES, ("{color} {shape}",), ("What size is the {thing}?", "Name the size of the {thing}.")
)

# --- places -----------------------------------------------------------------------------------------------------


def _find_place(facts: ShapesFacts, args: Args) -> Finding | None:
    i = the_one(facts, args[0])
    if i is None:
        return None
    thing = facts.things[i]
    return Finding(
        answers=(thing.place, *PLACE_ALIASES[thing.place]),
        evidence=(f"thing/{i}",),
        says=f"There is {with_article(f'{thing.size} {thing.color} {thing.shape}')}.",
        concludes=f"The {args[0]} is at the {thing.place}.",
    )


def _near_places(facts: ShapesFacts, args: Args) -> list[str]:
    i = the_one(facts, args[0])
    assert i is not None
    here = facts.things[i]

    def steps(place: str) -> int:
        other = in_place(here, place)
        return abs(other.row - here.row) + abs(other.column - here.column)

    free = sorted(free_places(facts), key=steps)
    return [place for place in free if steps(place) == 1] or free


def _forge_place(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    i = the_one(facts, args[0])
    if i is None or answer not in free_places(facts):
        return None
    return with_thing(facts, i, in_place(facts.things[i], answer))


PLACE: Final = Kind[ShapesFacts](
    type="fine_single/localization/place",
    families=FAMILIES,
    slots=("thing",),
    templates=("Where is the {thing}?", "In which place is the {thing}?"),
    ask=lambda facts, rng: names_of(facts, FULL_FORMS),
    find=_find_place,
    near=_near_places,
    forge=_forge_place,
)


def _find_object_at(facts: ShapesFacts, args: Args) -> Finding | None:
    for i, thing in enumerate(facts.things):
        if thing.place == args[0]:
            name = f"{thing.color} {thing.shape}"
            return Finding(
                answers=(name, f"{thing.size} {name}"),
                evidence=(f"thing/{i}",),
                says=f"There is a {thing.size} object at the {thing.place}.",
                concludes=f"The object at the {thing.place} is {with_article(name)}.",
            )
    return None


def _near_objects_at(facts: ShapesFacts, args: Args) -> list[str]:
    here = next(thing for thing in facts.things if thing.place == args[0])
    colors = dict.fromkeys([*(thing.color for thing in facts.things), *COLOR_NAMES])
    shapes = dict.fromkeys([*(thing.shape for thing in facts.things), *SHAPES])
    others = [*(f"{color} {here.shape}" for color in colors), *(f"{here.color} {shape}" for shape in shapes)]
    return [name for name in others if name != f"{here.color} {here.shape}"]


def _forge_object_at(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    color, _, shape = answer.partition(" ")
    for i, thing in enumerate(facts.things):
        if thing.place == args[0]:
            return with_thing(facts, i, replace(thing, color=color, shape=shape))
    return None


OBJECT_AT: Final = Kind[ShapesFacts](
    type="fine_single/recognition/object_at",
    families=FAMILIES,
    slots=("place",),
    templates=("What is at the {place}?", "Which object is at the {place}?"),
    ask=lambda facts, rng: [(thing.place,) for thing in facts.things],
    find=_find_object_at,
    near=_near_objects_at,
    forge=_forge_object_at,
)

ONE_THING_KINDS: Final = (COLOR, SHAPE, SIZE, PLACE, OBJECT_AT)
