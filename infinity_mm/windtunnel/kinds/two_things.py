"""Questions about two colored shapes: relations, sizes and colors compared."""

import random
from dataclasses import replace
from typing import Final

from infinity_mm.windtunnel.kinds.base import Args, Finding, Kind, balanced, other_yes_no, yes_no
from infinity_mm.windtunnel.kinds.things import (
    FAMILIES,
    free_places,
    in_place,
    pairs_of,
    the_one,
    with_thing,
)
from infinity_mm.windtunnel.scene import ShapesFacts, Thing
from infinity_mm.windtunnel.words import COLOR_NAMES


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
    for i, j, first, second in pairs_of(facts):
        one, two = facts.things[i], facts.things[j]
        across = ["left of", "right of"] if one.column != two.column else []
        along = ["above", "below"] if one.row != two.row else []
        for relations in filter(None, (across, along)):
            relation = rng.choice(relations)
            groups[_holds(one, relation, two)].append((first, relation, second))
    return balanced(groups, rng)


def _find_relative(facts: ShapesFacts, args: Args) -> Finding | None:
    i, j = the_one(facts, args[0]), the_one(facts, args[2])
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
    i, j = the_one(facts, args[0]), the_one(facts, args[2])
    if i is None or j is None:
        return None
    first, second = facts.things[i], facts.things[j]
    axis = "column" if args[1].endswith("of") else "row"
    for place in free_places(facts):
        moved = in_place(first, place)
        is_clear = getattr(moved, axis) != getattr(second, axis)
        if is_clear and yes_no(_holds(moved, args[1], second)) == (answer,):
            return with_thing(facts, i, moved)
    swapped = with_thing(facts, i, in_place(first, second.place))
    return with_thing(swapped, j, in_place(second, first.place))


RELATIVE: Final = Kind[ShapesFacts](
    type="relation/spatial/relative",
    families=FAMILIES,
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
        for i, j, a, b in pairs_of(facts, ("{color} {shape}",))
        if facts.things[i].size != facts.things[j].size
    ]


def _find_larger(facts: ShapesFacts, args: Args) -> Finding | None:
    i, j = the_one(facts, args[0]), the_one(facts, args[1])
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
        i = the_one(facts, phrase)
        if i is None:
            return None
        forged = with_thing(forged, i, replace(facts.things[i], size=size))
        finding = _find_larger(forged, args)
        if finding and finding.answers[0] == answer:
            return forged
    return None


LARGER: Final = Kind[ShapesFacts](
    type="fine_cross/comparison/larger",
    families=FAMILIES,
    slots=("thing", "thing2"),
    templates=("Is the {thing} larger than the {thing2}?", "Is the {thing} bigger than the {thing2}?"),
    ask=_ask_larger,
    find=_find_larger,
    near=lambda facts, args: other_yes_no(_answer(_find_larger(facts, args))),
    forge=_forge_larger,
)


def _ask_same_color(facts: ShapesFacts, rng: random.Random) -> list[Args]:
    groups: tuple[list[Args], list[Args]] = ([], [])
    for i, j, first, second in pairs_of(facts, ("{shape}", "{size} {shape}")):
        groups[facts.things[i].color == facts.things[j].color].append((first, second))
    # Two colors at random are seldom the same: a scene without a pair to set against asks with a coin.
    if all(groups):
        return balanced(groups, rng)
    return groups[1] or [args for args in groups[0][:1] if rng.random() < 0.6]


def _find_same_color(facts: ShapesFacts, args: Args) -> Finding | None:
    i, j = the_one(facts, args[0]), the_one(facts, args[1])
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
    i, j = the_one(facts, args[0]), the_one(facts, args[1])
    if i is None or j is None:
        return None
    target = facts.things[j].color
    color = target if answer == "yes" else next(name for name in COLOR_NAMES if name != target)
    return with_thing(facts, i, replace(facts.things[i], color=color))


SAME_COLOR: Final = Kind[ShapesFacts](
    type="fine_cross/comparison/same_color",
    families=FAMILIES,
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

TWO_THINGS_KINDS: Final = (RELATIVE, LARGER, SAME_COLOR)
