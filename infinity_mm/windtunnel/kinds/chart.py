"""Questions about bar charts: values, extremes, colors, comparison and sums."""

import random
from dataclasses import replace
from itertools import combinations, permutations
from typing import Final

from infinity_mm.windtunnel.kinds.base import (
    Args,
    Finding,
    Kind,
    near_numbers,
    near_words,
    other_yes_no,
    replaced,
    same,
    yes_no,
)
from infinity_mm.windtunnel.scene import Bar, ChartFacts
from infinity_mm.windtunnel.words import COLOR_NAMES, ITEMS, MAX_VALUE, TITLES, listing

_FAMILIES: Final = ("chart",)


def _bar(facts: ChartFacts, label: str) -> int | None:
    return next((i for i, bar in enumerate(facts.bars) if same(bar.label, label)), None)


def _with(facts: ChartFacts, i: int, bar: Bar) -> ChartFacts:
    return replace(facts, bars=replaced(facts.bars, i, bar))


def _labels(facts: ChartFacts, rng: random.Random) -> list[Args]:
    return [(bar.label,) for bar in facts.bars]


def _values(facts: ChartFacts) -> str:
    return " ".join(f"{bar.label} is {bar.value}." for bar in facts.bars)


# --- one bar ----------------------------------------------------------------------------------------------------


def _find_value(facts: ChartFacts, args: Args) -> Finding | None:
    i = _bar(facts, args[0])
    if i is None:
        return None
    bar = facts.bars[i]
    return Finding(
        answers=(str(bar.value),),
        evidence=(f"value/{i}", f"bar/{i}", f"label/{i}"),
        says=f"The bar for {bar.label} is {bar.color}.",
        concludes=f"{bar.label} is {bar.value}.",
    )


def _near_values(facts: ChartFacts, args: Args) -> list[str]:
    i = _bar(facts, args[0])
    assert i is not None
    return [*near_numbers(facts.bars[i].value, 1, MAX_VALUE), *(str(bar.value) for bar in facts.bars)]


def _forge_value(facts: ChartFacts, args: Args, answer: str) -> ChartFacts | None:
    i = _bar(facts, args[0])
    return None if i is None else _with(facts, i, replace(facts.bars[i], value=int(answer)))


VALUE: Final = Kind[ChartFacts](
    type="chart/value/read_value",
    families=_FAMILIES,
    slots=("item",),
    templates=("What is the value of {item}?", "How high is the bar for {item}?"),
    ask=_labels,
    find=_find_value,
    near=_near_values,
    forge=_forge_value,
)


def _find_color(facts: ChartFacts, args: Args) -> Finding | None:
    i = _bar(facts, args[0])
    if i is None:
        return None
    bar = facts.bars[i]
    return Finding(
        answers=(bar.color,),
        evidence=(f"bar/{i}", f"label/{i}"),
        says=f"{bar.label} is {bar.value}.",
        concludes=f"The bar for {bar.label} is {bar.color}.",
    )


def _forge_color(facts: ChartFacts, args: Args, answer: str) -> ChartFacts | None:
    i = _bar(facts, args[0])
    return None if i is None else _with(facts, i, replace(facts.bars[i], color=answer))


BAR_COLOR: Final = Kind[ChartFacts](
    type="chart/attribute/bar_color",
    families=_FAMILIES,
    slots=("item",),
    templates=("What color is the bar for {item}?", "Name the color of the bar for {item}."),
    ask=_labels,
    find=_find_color,
    near=lambda facts, args: [*(bar.color for bar in facts.bars), *COLOR_NAMES],
    forge=_forge_color,
)

# --- all bars ---------------------------------------------------------------------------------------------------


def _extreme_kind(type: str, word: str, sign: int, templates: tuple[str, str]) -> Kind[ChartFacts]:
    def find(facts: ChartFacts, args: Args) -> Finding | None:
        best = max(sign * bar.value for bar in facts.bars)
        winners = [i for i, bar in enumerate(facts.bars) if sign * bar.value == best]
        if len(winners) != 1:
            return None
        label = facts.bars[winners[0]].label
        return Finding(
            answers=(label,),
            evidence=(f"bar/{winners[0]}", f"label/{winners[0]}"),
            says=_values(facts),
            concludes=f"{label} is the {word}.",
        )

    def forge(facts: ChartFacts, args: Args, answer: str) -> ChartFacts | None:
        """Make the named bar the winner; rename the winner instead where the chart has no such bar."""
        best = max(range(len(facts.bars)), key=lambda i: sign * facts.bars[i].value)
        i = _bar(facts, answer)
        if i is None:
            return _with(facts, best, replace(facts.bars[best], label=answer))
        value = facts.bars[best].value + sign
        if 1 <= value <= MAX_VALUE:
            return _with(facts, i, replace(facts.bars[i], value=value))
        lowered = _with(facts, best, replace(facts.bars[best], value=facts.bars[i].value))
        return _with(lowered, i, replace(facts.bars[i], value=facts.bars[best].value))

    return Kind[ChartFacts](
        type=type,
        families=_FAMILIES,
        templates=templates,
        ask=lambda facts, rng: [()],
        find=find,
        near=lambda facts, args: [bar.label for bar in facts.bars],
        forge=forge,
    )


HIGHEST: Final = _extreme_kind(
    "chart/extreme/highest", "highest", 1, ("Which bar is the highest?", "What has the highest value?")
)
LOWEST: Final = _extreme_kind(
    "chart/extreme/lowest", "lowest", -1, ("Which bar is the lowest?", "What has the lowest value?")
)


def _find_count(facts: ChartFacts, args: Args) -> Finding:
    return Finding(
        answers=(str(len(facts.bars)),),
        evidence=tuple(f"bar/{i}" for i in range(len(facts.bars))),
        says=f"The bars are {listing([bar.label for bar in facts.bars])}.",
        concludes=f"There are {len(facts.bars)} bars.",
    )


def _forge_count(facts: ChartFacts, args: Args, answer: str) -> ChartFacts | None:
    wanted = int(answer)
    unused = [label for label in ITEMS if _bar(facts, label) is None]
    new = [Bar(label=label, value=5, color="red") for label in unused[: max(0, wanted - len(facts.bars))]]
    return replace(facts, bars=(*facts.bars, *new)[:wanted])


COUNT: Final = Kind[ChartFacts](
    type="chart/counting/bars",
    families=_FAMILIES,
    templates=("How many bars are there?", "Count the bars."),
    ask=lambda facts, rng: [()],
    find=_find_count,
    near=lambda facts, args: near_numbers(len(facts.bars), 2, 4),
    forge=_forge_count,
)


def _find_title(facts: ChartFacts, args: Args) -> Finding | None:
    if not facts.title:
        return None
    return Finding(
        answers=(facts.title,),
        evidence=("title",),
        says="There is one word above the bars.",
        concludes=f"The title is {facts.title}.",
    )


TITLE: Final = Kind[ChartFacts](
    type="ocr/text/title",
    families=_FAMILIES,
    templates=("What is the title?", "Read the title of the chart."),
    ask=lambda facts, rng: [()],
    find=_find_title,
    near=lambda facts, args: near_words(facts.title, TITLES),
    forge=lambda facts, args, answer: replace(facts, title=answer),
)

# --- two bars ---------------------------------------------------------------------------------------------------


def _two(facts: ChartFacts, args: Args) -> tuple[int, int] | None:
    i, j = _bar(facts, args[0]), _bar(facts, args[1])
    return None if i is None or j is None or i == j else (i, j)


def _evidence(i: int, j: int) -> tuple[str, ...]:
    return tuple(f"{part}/{k}" for k in (i, j) for part in ("value", "bar", "label"))


def _find_higher(facts: ChartFacts, args: Args) -> Finding | None:
    two = _two(facts, args)
    if two is None:
        return None
    first, second = facts.bars[two[0]], facts.bars[two[1]]
    holds = first.value > second.value
    return Finding(
        answers=yes_no(holds),
        evidence=_evidence(*two),
        says=f"{first.label} is {first.value}. {second.label} is {second.value}.",
        concludes=f"{first.label} is {'' if holds else 'not '}higher than {second.label}.",
    )


def _forge_higher(facts: ChartFacts, args: Args, answer: str) -> ChartFacts | None:
    two = _two(facts, args)
    if two is None:
        return None
    value = facts.bars[two[1]].value + (1 if answer == "yes" else -1)
    return _with(facts, two[0], replace(facts.bars[two[0]], value=value))


def _near_higher(facts: ChartFacts, args: Args) -> list[str]:
    finding = _find_higher(facts, args)
    return other_yes_no(finding.answers[0]) if finding else []


HIGHER: Final = Kind[ChartFacts](
    type="chart/comparison/higher",
    families=_FAMILIES,
    slots=("item", "item2"),
    templates=("Is {item} higher than {item2}?", "Is the bar for {item} higher than the bar for {item2}?"),
    ask=lambda facts, rng: [
        (one.label, two.label) for one, two in permutations(facts.bars, 2) if one.value != two.value
    ],
    find=_find_higher,
    near=_near_higher,
    forge=_forge_higher,
)


def _ask_pairs(facts: ChartFacts, rng: random.Random) -> list[Args]:
    pairs = [(one.label, two.label) for one, two in combinations(facts.bars, 2)]
    return [pair if rng.random() < 0.5 else (pair[1], pair[0]) for pair in pairs]


def _arithmetic_kind(name: str, templates: tuple[str, str]) -> Kind[ChartFacts]:
    def find(facts: ChartFacts, args: Args) -> Finding | None:
        two = _two(facts, args)
        if two is None:
            return None
        first, second = facts.bars[two[0]], facts.bars[two[1]]
        large, small = max(first.value, second.value), min(first.value, second.value)
        result = large - small if name == "difference" else large + small
        sum_of = f"{large} - {small}" if name == "difference" else f"{first.value} + {second.value}"
        return Finding(
            answers=(str(result),),
            evidence=_evidence(*two),
            says=f"{first.label} is {first.value}. {second.label} is {second.value}.",
            concludes=f"{sum_of} = {result}.",
        )

    def near(facts: ChartFacts, args: Args) -> list[str]:
        finding = find(facts, args)
        return near_numbers(int(finding.answers[0]), 0, 2 * MAX_VALUE) if finding else []

    def forge(facts: ChartFacts, args: Args, answer: str) -> ChartFacts | None:
        """Misread one of the two values, as little as will do."""
        two = _two(facts, args)
        if two is None:
            return None
        wanted, candidates = int(answer), []
        for i, j in (two, two[::-1]):
            fixed = facts.bars[j].value
            values = (fixed + wanted, fixed - wanted) if name == "difference" else (wanted - fixed,)
            candidates += [
                (abs(value - facts.bars[i].value), i, value) for value in values if 1 <= value <= MAX_VALUE
            ]
        if not candidates:
            return None
        _, i, value = min(candidates)
        return _with(facts, i, replace(facts.bars[i], value=value))

    return Kind[ChartFacts](
        type=f"logic/arithmetic/{name}",
        families=_FAMILIES,
        slots=("item", "item2"),
        templates=templates,
        ask=_ask_pairs,
        find=find,
        near=near,
        forge=forge,
    )


DIFFERENCE: Final = _arithmetic_kind(
    "difference",
    ("What is the difference between {item} and {item2}?", "How far apart are {item} and {item2}?"),
)
SUM: Final = _arithmetic_kind(
    "sum", ("What is the sum of {item} and {item2}?", "How much are {item} and {item2} together?")
)

CHART_KINDS: Final = (VALUE, BAR_COLOR, HIGHEST, LOWEST, COUNT, TITLE, HIGHER, DIFFERENCE, SUM)
