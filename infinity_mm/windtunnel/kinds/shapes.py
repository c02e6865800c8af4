"""Questions about colored shapes: attributes, places, counts, existence, comparison and relations."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Final

from infinity_mm.windtunnel.kinds.base import (
    Args,
    Finding,
    Kind,
    balanced,
    other_yes_no,
    replaced,
    yes_no,
)
from infinity_mm.windtunnel.scene import ShapesFacts, Thing
from infinity_mm.windtunnel.words import (
    COLOR_NAMES,
    PLACE_ALIASES,
    PLACE_NAMES,
    SHAPES,
    SIZES,
    listing,
    plural,
    with_article,
)

_FAMILIES: Final = ("shapes",)
_MAX_THINGS: Final = 4


def _matches(thing: Thing, phrase: str) -> bool:
    return set(phrase.lower().split()) <= {thing.size, thing.color, thing.shape, "object"}


def _the(facts: ShapesFacts, phrase: str) -> int | None:
    """The one object that the phrase means; None where there is none, or more than one."""
    found = [i for i, thing in enumerate(facts.things) if _matches(thing, phrase)]
    return found[0] if len(found) == 1 else None


def _name(facts: ShapesFacts, i: int, forms: tuple[str, ...]) -> str | None:
    """The first of the forms, such as `{color} {shape}`, that means this object and no other."""
    thing = facts.things[i]
    names = (form.format(size=thing.size, color=thing.color, shape=thing.shape) for form in forms)
    return next((name for name in names if _the(facts, name) == i), None)


_FULL_FORMS: Final = ("{color} {shape}", "{size} {color} {shape}")


def _names(facts: ShapesFacts, forms: tuple[str, ...]) -> list[Args]:
    names = (_name(facts, i, forms) for i in range(len(facts.things)))
    return [(name,) for name in names if name]


def _pairs(facts: ShapesFacts, forms: tuple[str, ...] = _FULL_FORMS) -> Iterator[tuple[int, int, str, str]]:
    for i, j in permutations(range(len(facts.things)), 2):
        first, second = _name(facts, i, forms), _name(facts, j, forms)
        if first and second:
            yield i, j, first, second


def _with(facts: ShapesFacts, i: int, thing: Thing) -> ShapesFacts:
    return ShapesFacts(things=replaced(facts.things, i, thing))


def _in_place(thing: Thing, place: str) -> Thing:
    row, column = divmod(PLACE_NAMES.index(place), 3)
    return replace(thing, row=row, column=column)


def _free_places(facts: ShapesFacts) -> list[str]:
    taken = {thing.place for thing in facts.things}
    return [place for place in PLACE_NAMES if place not in taken]


def _in_reading_order(things: list[Thing]) -> ShapesFacts:
    return ShapesFacts(things=tuple(sorted(things, key=lambda thing: (thing.row, thing.column))))


# --- attributes -------------------------------------------------------------------------------------------------


def _attribute_kind(
    attribute: str, values: tuple[str, ...], forms: tuple[str, ...], templates: tuple[str, str]
) -> Kind:
    def find(facts: ShapesFacts, args: Args) -> Finding | None:
        i = _the(facts, args[0])
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
        i = _the(facts, args[0])
        if i is None or answer not in values:
            return None
        return _with(facts, i, replace(facts.things[i], **{attribute: answer}))

    return Kind[ShapesFacts](
        type=f"fine_single/attribute/{attribute}",
        families=_FAMILIES,
        slots=("thing",),
        templates=templates,
        ask=lambda facts, rng: _names(facts, forms),
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
    i = _the(facts, args[0])
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
    i = _the(facts, args[0])
    assert i is not None
    here = facts.things[i]

    def steps(place: str) -> int:
        other = _in_place(here, place)
        return abs(other.row - here.row) + abs(other.column - here.column)

    free = sorted(_free_places(facts), key=steps)
    return [place for place in free if steps(place) == 1] or free


def _forge_place(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    i = _the(facts, args[0])
    if i is None or answer not in _free_places(facts):
        return None
    return _with(facts, i, _in_place(facts.things[i], answer))


PLACE: Final = Kind[ShapesFacts](
    type="fine_single/localization/place",
    families=_FAMILIES,
    slots=("thing",),
    templates=("Where is the {thing}?", "In which place is the {thing}?"),
    ask=lambda facts, rng: _names(facts, _FULL_FORMS),
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
            return _with(facts, i, replace(thing, color=color, shape=shape))
    return None


OBJECT_AT: Final = Kind[ShapesFacts](
    type="fine_single/recognition/object_at",
    families=_FAMILIES,
    slots=("place",),
    templates=("What is at the {place}?", "Which object is at the {place}?"),
    ask=lambda facts, rng: [(thing.place,) for thing in facts.things],
    find=_find_object_at,
    near=_near_objects_at,
    forge=_forge_object_at,
)

# --- counts and existence ---------------------------------------------------------------------------------------


def _all_phrases() -> list[str]:
    colors = [f"{color} object" for color in COLOR_NAMES]
    pairs = [f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES]
    return ["object", *colors, *SHAPES, *(f"{size} object" for size in SIZES), *pairs]


_PHRASES: Final = tuple(_all_phrases())


def _matching(facts: ShapesFacts, phrase: str) -> list[int]:
    return [i for i, thing in enumerate(facts.things) if _matches(thing, phrase)]


def _ask_count(facts: ShapesFacts, rng: random.Random) -> list[Args]:
    """Counts of one are the most frequent by far and counts of nothing endless: one of each will do."""
    groups: dict[int, list[Args]] = {}
    for phrase in _PHRASES:
        groups.setdefault(len(_matching(facts, phrase)), []).append((phrase,))
    limits = {0: int(rng.random() < 0.4), 1: int(rng.random() < 0.5), 2: 1}
    return [
        args for n, group in groups.items() for args in rng.sample(group, min(len(group), limits.get(n, 2)))
    ]


def _find_count(facts: ShapesFacts, args: Args) -> Finding:
    found = _matching(facts, args[0])
    several = plural(args[0])
    if not found:
        says = f"I see no {several}."
    else:
        places = listing([f"the {facts.things[i].place}" for i in found])
        says = f"I see {with_article(args[0]) if len(found) == 1 else several} at {places}."
    one = len(found) == 1
    return Finding(
        answers=(str(len(found)),),
        evidence=tuple(f"thing/{i}" for i in found),
        says=says,
        concludes=f"There {'is' if one else 'are'} {len(found)} {args[0] if one else several}.",
    )


def _near_counts(facts: ShapesFacts, args: Args) -> list[str]:
    count = len(_matching(facts, args[0]))
    return [str(other) for other in (count + 1, count - 1) if 0 <= other <= _MAX_THINGS + 1]


def _forge_count(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    """Take matching objects away, or put new ones on free places."""
    if not answer.isdigit():
        return None
    things, found = list(facts.things), _matching(facts, args[0])
    surplus = len(found) - int(answer)
    if surplus >= 0:
        gone = set(found[len(found) - surplus :])
        return ShapesFacts(things=tuple(thing for i, thing in enumerate(things) if i not in gone))
    words = set(args[0].split())
    pattern = Thing(
        shape=next((shape for shape in SHAPES if shape in words), things[0].shape if things else "circle"),
        color=next((color for color in COLOR_NAMES if color in words), things[0].color if things else "red"),
        size=next((size for size in SIZES if size in words), "small"),
        row=0,
        column=0,
    )
    new = [_in_place(pattern, place) for place in _free_places(facts)[:-surplus]]
    return _in_reading_order([*things, *new])


COUNT: Final = Kind[ShapesFacts](
    type="fine_cross/counting/count",
    families=_FAMILIES,
    slots=("things",),
    templates=("How many {things} are there?", "Count the {things}."),
    ask=_ask_count,
    find=_find_count,
    near=_near_counts,
    forge=_forge_count,
)


def _ask_present(facts: ShapesFacts, rng: random.Random) -> list[Args]:
    """Half of the absent ones share a color or a shape with the image: the picture must be looked at."""
    groups: tuple[list[Args], list[Args]] = ([], [])
    for phrase in _PHRASES:
        if phrase != "object" and not phrase.startswith(SIZES):
            groups[bool(_matching(facts, phrase))].append((phrase,))
    absent = rng.sample(groups[0], len(groups[0]))
    seen = {word for thing in facts.things for word in (thing.color, thing.shape)}
    tempting = [args for args in absent if len(seen & set(args[0].split())) > 0]
    tempting += [args for args in absent if args not in tempting]
    num = min(len(groups[1]), 4)
    return [
        *rng.sample(groups[1], num),
        *tempting[: num // 2],
        *rng.sample(tempting[num // 2 :], num - num // 2),
    ]


def _find_present(facts: ShapesFacts, args: Args) -> Finding:
    found = _matching(facts, args[0])
    objects = [with_article(f"{thing.color} {thing.shape}") for thing in facts.things]
    if found:
        concludes = f"There is {with_article(args[0])} at the {facts.things[found[0]].place}."
    else:
        concludes = f"There is no {args[0]}."
    return Finding(
        answers=yes_no(bool(found)),
        evidence=tuple(f"thing/{i}" for i in found),
        says=f"I see {listing(objects)}." if objects else "I see nothing.",
        concludes=concludes,
    )


def _forge_present(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    words = set(args[0].split())
    color = next((color for color in COLOR_NAMES if color in words), None)
    shape = next((shape for shape in SHAPES if shape in words), None)
    if answer == "yes":
        shared = [len(words & {thing.color, thing.shape}) for thing in facts.things]
        i = shared.index(max(shared))
        thing = facts.things[i]
        return _with(facts, i, replace(thing, color=color or thing.color, shape=shape or thing.shape))
    used = {thing.color for thing in facts.things} | {thing.shape for thing in facts.things}
    forged = facts
    for i in _matching(facts, args[0]):
        if color:
            thing = replace(facts.things[i], color=next(name for name in COLOR_NAMES if name not in used))
        else:
            thing = replace(facts.things[i], shape=next(name for name in SHAPES if name not in used))
        forged = _with(forged, i, thing)
    return forged


PRESENT: Final = Kind[ShapesFacts](
    type="logic/existence/present",
    families=_FAMILIES,
    slots=("a_thing",),
    templates=("Is there {a_thing}?", "Does the image show {a_thing}?"),
    ask=_ask_present,
    find=_find_present,
    near=lambda facts, args: other_yes_no(_find_present(facts, args).answers[0]),
    forge=_forge_present,
)

# --- two objects ------------------------------------------------------------------------------------------------


def _holds(first: Thing, relation: str, second: Thing) -> bool:
    return {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[relation]


def _ask_relative(facts: ShapesFacts, rng: random.Random) -> list[Args]:
    """Only where the two differ along the axis asked about, so that jitter cannot matter."""
    groups: tuple[list[Args], list[Args]] = ([], [])
    for i, j, first, second in _pairs(facts):
        one, two = facts.things[i], facts.things[j]
        axes = [("left of", "right of")] * (one.column != two.column) + [("above", "below")] * (
            one.row != two.row
        )
        for relations in axes:
            relation = rng.choice(relations)
            groups[_holds(one, relation, two)].append((first, relation, second))
    return balanced(groups, rng)


def _find_relative(facts: ShapesFacts, args: Args) -> Finding | None:
    i, j = _the(facts, args[0]), _the(facts, args[2])
    if i is None or j is None or i == j:
        return None
    first, second = facts.things[i], facts.things[j]
    holds = _holds(first, args[1], second)
    return Finding(
        answers=yes_no(holds),
        evidence=(f"thing/{i}", f"thing/{j}"),
        says=f"The {args[0]} is at the {first.place}. The {args[2]} is at the {second.place}.",
        concludes=f"The {args[0]} is {'' if holds else 'not '}{args[1]} the {args[2]}.",
    )


def _forge_relative(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    """Move one object to a free place where the two clearly differ, or let them change places."""
    i, j = _the(facts, args[0]), _the(facts, args[2])
    if i is None or j is None:
        return None
    first, second = facts.things[i], facts.things[j]
    axis = "column" if args[1].endswith("of") else "row"
    for place in _free_places(facts):
        moved = _in_place(first, place)
        is_clear = getattr(moved, axis) != getattr(second, axis)
        if is_clear and yes_no(_holds(moved, args[1], second)) == (answer,):
            return _with(facts, i, moved)
    swapped = _with(facts, i, _in_place(first, second.place))
    return _with(swapped, j, _in_place(second, first.place))


RELATIVE: Final = Kind[ShapesFacts](
    type="relation/spatial/relative",
    families=_FAMILIES,
    slots=("thing", "relation", "thing2"),
    templates=("Is the {thing} {relation} the {thing2}?", "Does the {thing} lie {relation} the {thing2}?"),
    ask=_ask_relative,
    find=_find_relative,
    near=lambda facts, args: other_yes_no(_answer(_find_relative(facts, args))),
    forge=_forge_relative,
)


def _answer(finding: Finding | None) -> str:
    assert finding is not None, "near answers are asked for answerable questions only"
    return finding.answers[0]


def _ask_larger(facts: ShapesFacts, rng: random.Random) -> list[Args]:
    """Objects are named without their size, which would give the answer away."""
    return [
        (a, b)
        for i, j, a, b in _pairs(facts, ("{color} {shape}",))
        if facts.things[i].size != facts.things[j].size
    ]


def _find_larger(facts: ShapesFacts, args: Args) -> Finding | None:
    i, j = _the(facts, args[0]), _the(facts, args[1])
    if i is None or j is None or i == j:
        return None
    first, second = facts.things[i].size, facts.things[j].size
    holds = (first, second) == ("large", "small")
    return Finding(
        answers=yes_no(holds),
        evidence=(f"thing/{i}", f"thing/{j}"),
        says=f"The {args[0]} is {first}. The {args[1]} is {second}.",
        concludes=f"The {args[0]} is {'' if holds else 'not '}larger than the {args[1]}.",
    )


def _forge_larger(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    forged = facts
    sizes = ("large", "small") if answer == "yes" else ("small", "large")
    for phrase, size in zip(args, sizes, strict=True):
        i = _the(facts, phrase)
        if i is None:
            return None
        forged = _with(forged, i, replace(facts.things[i], size=size))
        finding = _find_larger(forged, args)
        if finding and finding.answers[0] == answer:
            return forged
    return None


LARGER: Final = Kind[ShapesFacts](
    type="fine_cross/comparison/larger",
    families=_FAMILIES,
    slots=("thing", "thing2"),
    templates=("Is the {thing} larger than the {thing2}?", "Is the {thing} bigger than the {thing2}?"),
    ask=_ask_larger,
    find=_find_larger,
    near=lambda facts, args: other_yes_no(_answer(_find_larger(facts, args))),
    forge=_forge_larger,
)


def _ask_same_color(facts: ShapesFacts, rng: random.Random) -> list[Args]:
    groups: tuple[list[Args], list[Args]] = ([], [])
    for i, j, first, second in _pairs(facts, ("{shape}", "{size} {shape}")):
        groups[facts.things[i].color == facts.things[j].color].append((first, second))
    # Two colors at random are seldom the same: a scene without a pair to set against asks with a coin.
    if all(groups):
        return balanced(groups, rng)
    return groups[1] or [args for args in groups[0][:1] if rng.random() < 0.6]


def _find_same_color(facts: ShapesFacts, args: Args) -> Finding | None:
    i, j = _the(facts, args[0]), _the(facts, args[1])
    if i is None or j is None or i == j:
        return None
    first, second = facts.things[i].color, facts.things[j].color
    return Finding(
        answers=yes_no(first == second),
        evidence=(f"thing/{i}", f"thing/{j}"),
        says=f"The {args[0]} is {first}. The {args[1]} is {second}.",
        concludes="They have the same color." if first == second else "They have different colors.",
    )


def _forge_same_color(facts: ShapesFacts, args: Args, answer: str) -> ShapesFacts | None:
    i, j = _the(facts, args[0]), _the(facts, args[1])
    if i is None or j is None:
        return None
    target = facts.things[j].color
    color = target if answer == "yes" else next(name for name in COLOR_NAMES if name != target)
    return _with(facts, i, replace(facts.things[i], color=color))


SAME_COLOR: Final = Kind[ShapesFacts](
    type="fine_cross/comparison/same_color",
    families=_FAMILIES,
    slots=("thing", "thing2"),
    templates=(
        "Do the {thing} and the {thing2} have the same color?",
        "Are the {thing} and the {thing2} the same color?",
    ),
    ask=_ask_same_color,
    find=_find_same_color,
    near=lambda facts, args: other_yes_no(_answer(_find_same_color(facts, args))),
    forge=_forge_same_color,
)

SHAPES_KINDS: Final = (
    COLOR, SHAPE, SIZE, PLACE, OBJECT_AT, COUNT, PRESENT, RELATIVE, LARGER, SAME_COLOR,
)  # fmt: skip
