"""Questions about all the colored shapes: how many there are, and whether there is one."""

import random
from dataclasses import replace
from typing import Final

from infinity_mm.windtunnel.kinds.base import Args, Finding, Kind, other_yes_no, yes_no
from infinity_mm.windtunnel.kinds.things import (
    FAMILIES,
    MAX_THINGS,
    free_places,
    in_place,
    in_reading_order,
    matches,
    with_thing,
)
from infinity_mm.windtunnel.scene import ShapesFacts, Thing
from infinity_mm.windtunnel.words import (
    COLOR_NAMES,
    SHAPES,
    SIZES,
    listing,
    plural,
    with_article,
)


def _all_phrases() -> list[str]:
    colors = [f"{color} object" for color in COLOR_NAMES]
    pairs = [f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES]
    return ["object", *colors, *SHAPES, *(f"{size} object" for size in SIZES), *pairs]


_PHRASES: Final = tuple(_all_phrases())


def _matching(facts: ShapesFacts, phrase: str) -> list[int]:
    return [i for i, thing in enumerate(facts.things) if matches(thing, phrase)]


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
    return [str(other) for other in (count + 1, count - 1) if 0 <= other <= MAX_THINGS]


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
    new = [in_place(pattern, place) for place in free_places(facts)[:-surplus]]
    return in_reading_order([*things, *new])


COUNT: Final = Kind[ShapesFacts](
    type="fine_cross/counting/count",
    families=FAMILIES,
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
        return with_thing(facts, i, replace(thing, color=color or thing.color, shape=shape or thing.shape))
    used = {thing.color for thing in facts.things} | {thing.shape for thing in facts.things}
    forged = facts
    for i in _matching(facts, args[0]):
        if color:
            thing = replace(facts.things[i], color=next(name for name in COLOR_NAMES if name not in used))
        else:
            thing = replace(facts.things[i], shape=next(name for name in SHAPES if name not in used))
        forged = with_thing(forged, i, thing)
    return forged


PRESENT: Final = Kind[ShapesFacts](
    type="logic/existence/present",
    families=FAMILIES,
    slots=("a_thing",),
    templates=("Is there {a_thing}?", "Does the image show {a_thing}?"),
    ask=_ask_present,
    find=_find_present,
    near=lambda facts, args: other_yes_no(_find_present(facts, args).answers[0]),
    forge=_forge_present,
)

ALL_THINGS_KINDS: Final = (COUNT, PRESENT)
