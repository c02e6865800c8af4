"""Questions about tables: cells, headers, extremes, comparison and structure."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Final

from infinity_mm.windtunnel.kinds.base import (
    Args,
    Finding,
    Kind,
    near_numbers,
    other_yes_no,
    replaced,
    same,
    yes_no,
)
from infinity_mm.windtunnel.scene import Row, TableFacts
from infinity_mm.windtunnel.words import ITEM_HEADERS, ITEMS, NUMBER_HEADERS, listing

_FAMILIES: Final = ("table",)


def _row(facts: TableFacts, item: str) -> int | None:
    return next((r for r, row in enumerate(facts.rows) if same(row.item, item)), None)


def _column(facts: TableFacts, header: str) -> int | None:
    """Which of the number columns; the column of items is not one of them."""
    return next((c for c, name in enumerate(facts.headers[1:]) if same(name, header)), None)


def _with_number(facts: TableFacts, r: int, c: int, number: int) -> TableFacts:
    row = facts.rows[r]
    return replace(
        facts, rows=replaced(facts.rows, r, replace(row, numbers=replaced(row.numbers, c, number)))
    )


def _evidence(r: int, c: int) -> tuple[str, ...]:
    return f"cell/{r + 1}/{c + 1}", f"cell/{r + 1}/0", f"cell/0/{c + 1}"


def _column_says(facts: TableFacts, c: int) -> str:
    return " ".join(f"{row.item} is {row.numbers[c]}." for row in facts.rows)


# --- cells ------------------------------------------------------------------------------------------------------


def _find_cell(facts: TableFacts, args: Args) -> Finding | None:
    r, c = _row(facts, args[1]), _column(facts, args[0])
    if r is None or c is None:
        return None
    number = facts.rows[r].numbers[c]
    header, item = facts.headers[c + 1], facts.rows[r].item
    return Finding(
        answers=(str(number),),
        evidence=_evidence(r, c),
        says=f"{item} is in row {r + 1}. {header} is column {c + 2}.",
        concludes=f"The {header} of {item} is {number}.",
    )


def _near_cells(facts: TableFacts, args: Args) -> list[str]:
    r, c = _row(facts, args[1]), _column(facts, args[0])
    assert r is not None
    assert c is not None
    neighbors = [row.numbers[c] for row in facts.rows] + list(facts.rows[r].numbers)
    return [*near_numbers(facts.rows[r].numbers[c], 0, 99), *map(str, neighbors)]


def _forge_cell(facts: TableFacts, args: Args, answer: str) -> TableFacts | None:
    r, c = _row(facts, args[1]), _column(facts, args[0])
    return None if r is None or c is None else _with_number(facts, r, c, int(answer))


LOOKUP: Final = Kind[TableFacts](
    type="table/cell/lookup",
    families=_FAMILIES,
    slots=("header", "item"),
    templates=("What is the {header} of {item}?", "Which {header} does {item} have?"),
    ask=lambda facts, rng: [(header, row.item) for header in facts.headers[1:] for row in facts.rows],
    find=_find_cell,
    near=_near_cells,
    forge=_forge_cell,
)

# --- columns ----------------------------------------------------------------------------------------------------


def _extreme_kind(word: str, sign: int) -> Kind[TableFacts]:
    def find(facts: TableFacts, args: Args) -> Finding | None:
        c = _column(facts, args[0])
        if c is None:
            return None
        best = max(sign * row.numbers[c] for row in facts.rows)
        winners = [r for r, row in enumerate(facts.rows) if sign * row.numbers[c] == best]
        if len(winners) != 1:
            return None
        item = facts.rows[winners[0]].item
        return Finding(
            answers=(item,),
            evidence=_evidence(winners[0], c),
            says=_column_says(facts, c),
            concludes=f"{item} has the {word} {facts.headers[c + 1]}.",
        )

    def forge(facts: TableFacts, args: Args, answer: str) -> TableFacts | None:
        """Make the named row the winner; rename the winner instead where the table has no such row."""
        c = _column(facts, args[0])
        if c is None:
            return None
        best = max(range(len(facts.rows)), key=lambda r: sign * facts.rows[r].numbers[c])
        r = _row(facts, answer)
        if r is None:
            return replace(facts, rows=replaced(facts.rows, best, replace(facts.rows[best], item=answer)))
        number = facts.rows[best].numbers[c] + sign
        if 0 <= number <= 99:
            return _with_number(facts, r, c, number)
        lowered = _with_number(facts, best, c, facts.rows[r].numbers[c])
        return _with_number(lowered, r, c, facts.rows[best].numbers[c])

    return Kind[TableFacts](
        type=f"table/extreme/{word}",
        families=_FAMILIES,
        slots=("header",),
        templates=(f"Which item has the {word} {{header}}?", f"What has the {word} {{header}}?"),
        ask=lambda facts, rng: [(header,) for header in facts.headers[1:]],
        find=find,
        near=lambda facts, args: [row.item for row in facts.rows],
        forge=forge,
    )


HIGHEST: Final = _extreme_kind("highest", 1)
LOWEST: Final = _extreme_kind("lowest", -1)


def _find_more(facts: TableFacts, args: Args) -> Finding | None:
    r, s, c = _row(facts, args[0]), _row(facts, args[2]), _column(facts, args[1])
    if r is None or s is None or c is None or r == s:
        return None
    first, second, header = facts.rows[r], facts.rows[s], facts.headers[c + 1]
    holds = first.numbers[c] > second.numbers[c]
    return Finding(
        answers=yes_no(holds),
        evidence=(*_evidence(r, c), *_evidence(s, c)),
        says=f"{first.item} is {first.numbers[c]}. {second.item} is {second.numbers[c]}.",
        concludes=f"{first.item} {'has' if holds else 'does not have'} a higher {header} than {second.item}.",
    )


def _forge_more(facts: TableFacts, args: Args, answer: str) -> TableFacts | None:
    r, s, c = _row(facts, args[0]), _row(facts, args[2]), _column(facts, args[1])
    if r is None or s is None or c is None:
        return None
    number = facts.rows[s].numbers[c]
    if answer == "yes":
        return _with_number(facts, r, c, number + 1)
    return _with_number(facts, r, c, number - 1) if number > 0 else _with_number(facts, s, c, 99)


def _near_more(facts: TableFacts, args: Args) -> list[str]:
    finding = _find_more(facts, args)
    return other_yes_no(finding.answers[0]) if finding else []


MORE: Final = Kind[TableFacts](
    type="table/comparison/higher",
    families=_FAMILIES,
    slots=("item", "header", "item2"),
    templates=(
        "Does {item} have a higher {header} than {item2}?",
        "Is the {header} of {item} higher than that of {item2}?",
    ),
    ask=lambda facts, rng: [
        (one.item, header, two.item)
        for c, header in enumerate(facts.headers[1:])
        for one, two in permutations(facts.rows, 2)
        if one.numbers[c] != two.numbers[c]
    ],
    find=_find_more,
    near=_near_more,
    forge=_forge_more,
)

# --- structure --------------------------------------------------------------------------------------------------


def _find_rows(facts: TableFacts, args: Args) -> Finding:
    return Finding(
        answers=(str(len(facts.rows)),),
        evidence=tuple(f"cell/{r + 1}/0" for r in range(len(facts.rows))),
        says=f"The items are {listing([row.item for row in facts.rows])}.",
        concludes=f"There are {len(facts.rows)} items.",
    )


def _forge_rows(facts: TableFacts, args: Args, answer: str) -> TableFacts | None:
    wanted = int(answer)
    unused = [item for item in ITEMS if _row(facts, item) is None]
    numbers = facts.rows[0].numbers
    new = [Row(item=item, numbers=numbers) for item in unused[: max(0, wanted - len(facts.rows))]]
    return replace(facts, rows=(*facts.rows, *new)[:wanted])


def _find_columns(facts: TableFacts, args: Args) -> Finding:
    return Finding(
        answers=(str(len(facts.headers)),),
        evidence=tuple(f"cell/0/{c}" for c in range(len(facts.headers))),
        says=f"The headers are {listing(list(facts.headers))}.",
        concludes=f"There are {len(facts.headers)} columns.",
    )


def _forge_columns(facts: TableFacts, args: Args, answer: str) -> TableFacts | None:
    wanted = int(answer)
    missing = max(0, wanted - len(facts.headers))
    unused = [header for header in NUMBER_HEADERS if _column(facts, header) is None]
    rows = tuple(replace(row, numbers=(*row.numbers, *[0] * missing)[: wanted - 1]) for row in facts.rows)
    return TableFacts(headers=(*facts.headers, *unused[:missing])[:wanted], rows=rows)


def _near_count(count: Callable[[TableFacts], int]) -> Callable[[TableFacts, Args], list[str]]:
    return lambda facts, args: near_numbers(count(facts), 2, 3)


ROWS: Final = Kind[TableFacts](
    type="table/structure/items",
    families=_FAMILIES,
    templates=("How many items does the table list?", "Count the items in the table."),
    ask=lambda facts, rng: [()],
    find=_find_rows,
    near=_near_count(lambda facts: len(facts.rows)),
    forge=_forge_rows,
)
COLUMNS: Final = Kind[TableFacts](
    type="table/structure/columns",
    families=_FAMILIES,
    templates=("How many columns does the table have?", "Count the columns of the table."),
    ask=lambda facts, rng: [()],
    find=_find_columns,
    near=_near_count(lambda facts: len(facts.headers)),
    forge=_forge_columns,
)


def _find_header(facts: TableFacts, args: Args) -> Finding | None:
    c = int(args[0]) - 1
    if c >= len(facts.headers):
        return None
    return Finding(
        answers=(facts.headers[c],),
        evidence=(f"cell/0/{c}",),
        says=f"The table has {len(facts.headers)} columns.",
        concludes=f"Column {c + 1} is {facts.headers[c]}.",
    )


def _near_headers(facts: TableFacts, c: int) -> list[str]:
    if c == 0:
        return [header for header in ITEM_HEADERS if header != facts.headers[0]]
    return [*facts.headers[1:], *(header for header in NUMBER_HEADERS if header not in facts.headers)]


HEADER: Final = Kind[TableFacts](
    type="ocr/table/header",
    families=_FAMILIES,
    slots=("index",),
    templates=("What is the header of column {index}?", "Read the header of column {index}."),
    ask=lambda facts, rng: [(str(c + 1),) for c in range(len(facts.headers))],
    find=_find_header,
    near=lambda facts, args: _near_headers(facts, int(args[0]) - 1),
    forge=lambda facts, args, answer: replace(
        facts, headers=replaced(facts.headers, int(args[0]) - 1, answer)
    ),
)

TABLE_KINDS: Final = (LOOKUP, HIGHEST, LOWEST, MORE, ROWS, COLUMNS, HEADER)
