"""Questions about signs and forms: reading, fields, existence of words, background color."""

import random
from dataclasses import replace
from itertools import zip_longest
from typing import Final

from infinity_mm.windtunnel.kinds.base import (
    Args,
    Finding,
    Kind,
    near_codes,
    near_numbers,
    near_words,
    other_yes_no,
    replaced,
    same,
    yes_no,
)
from infinity_mm.windtunnel.scene import DocumentFacts, Line
from infinity_mm.windtunnel.words import (
    CITIES,
    COLOR_NAMES,
    DAYS,
    FIELDS,
    NAMES,
    SIGN_WORDS,
    listing,
)

_FAMILIES: Final = ("document",)


def _with(facts: DocumentFacts, i: int, line: Line) -> DocumentFacts:
    return replace(facts, lines=replaced(facts.lines, i, line))


def _field(facts: DocumentFacts, label: str) -> int | None:
    return next((i for i, line in enumerate(facts.lines) if line.label and same(line.label, label)), None)


def _num_lines(facts: DocumentFacts) -> str:
    return "There is 1 line." if len(facts.lines) == 1 else f"There are {len(facts.lines)} lines."


_VOCABULARIES: Final = {"Name": NAMES, "City": CITIES, "Day": DAYS, "": SIGN_WORDS}
"""Words that a line may show, by its label; other labels have numbers, `Code` has a code."""

_NUMBER_FIELDS: Final = ("Total", "Room", "Age")


def _near_value(line: Line) -> list[str]:
    if line.label == "Code":
        return near_codes(line.value)
    vocabulary = _VOCABULARIES.get(line.label)
    return near_words(line.value, vocabulary) if vocabulary else near_numbers(int(line.value), 1, 99)


# --- lines ------------------------------------------------------------------------------------------------------


def _find_line(facts: DocumentFacts, args: Args) -> Finding | None:
    i = int(args[0]) - 1
    if i >= len(facts.lines):
        return None
    text = facts.lines[i].text
    return Finding(
        answers=(text,),
        evidence=(f"line/{i}",),
        says=_num_lines(facts),
        concludes=f"Line {i + 1} says {text}.",
    )


def _near_lines(facts: DocumentFacts, args: Args) -> list[str]:
    line = facts.lines[int(args[0]) - 1]
    misread = [replace(line, value=value).text for value in _near_value(line)]
    return [*(other.text for other in facts.lines), *misread]


def _forge_line(facts: DocumentFacts, args: Args, answer: str) -> DocumentFacts | None:
    label, colon, value = answer.rpartition(": ")
    if bool(colon) != (facts.kind == "form"):
        return None
    return _with(facts, int(args[0]) - 1, Line(label=label, value=value))


READ_LINE: Final = Kind[DocumentFacts](
    type="ocr/text/read_line",
    families=_FAMILIES,
    slots=("index",),
    templates=("What does line {index} say?", "Read line {index}."),
    ask=lambda facts, rng: [(str(i + 1),) for i in range(len(facts.lines))],
    find=_find_line,
    near=_near_lines,
    forge=_forge_line,
)


def _find_count(facts: DocumentFacts, args: Args) -> Finding:
    return Finding(
        answers=(str(len(facts.lines)),),
        evidence=tuple(f"line/{i}" for i in range(len(facts.lines))),
        says=f"I read {listing([line.text for line in facts.lines])}.",
        concludes=_num_lines(facts),
    )


def _example(field: str) -> str:
    return "K7A" if field == "Code" else _VOCABULARIES.get(field, ("7",))[0]


def _forge_count(facts: DocumentFacts, args: Args, answer: str) -> DocumentFacts | None:
    wanted = int(answer)
    missing = max(0, wanted - len(facts.lines))
    if facts.kind == "sign":
        used = {line.value for line in facts.lines}
        new = [Line(label="", value=word) for word in SIGN_WORDS if word not in used]
    else:
        new = [Line(label=field, value=_example(field)) for field in FIELDS if _field(facts, field) is None]
    return replace(facts, lines=(*facts.lines, *new[:missing])[:wanted])


COUNT: Final = Kind[DocumentFacts](
    type="ocr/counting/lines",
    families=_FAMILIES,
    templates=("How many lines of text are there?", "Count the lines of text."),
    ask=lambda facts, rng: [()],
    find=_find_count,
    near=lambda facts, args: near_numbers(len(facts.lines), *((1, 3) if facts.kind == "sign" else (2, 4))),
    forge=_forge_count,
)

# --- signs ------------------------------------------------------------------------------------------------------


def _find_all(facts: DocumentFacts, args: Args) -> Finding | None:
    if facts.kind != "sign":
        return None
    text = " ".join(line.value for line in facts.lines)
    return Finding(
        answers=(text,),
        evidence=tuple(f"line/{i}" for i in range(len(facts.lines))),
        says=_num_lines(facts),
        concludes=f"The sign says {text}.",
    )


def _near_all(facts: DocumentFacts, args: Args) -> list[str]:
    """One word misread; the likeliest mistakes of all words come before the second likeliest of any."""
    words = tuple(line.value for line in facts.lines)
    misread = [
        [" ".join(replaced(words, i, other)) for other in near_words(word, SIGN_WORDS)]
        for i, word in enumerate(words)
    ]
    return [text for turn in zip_longest(*misread) for text in turn if text]


def _forge_all(facts: DocumentFacts, args: Args, answer: str) -> DocumentFacts | None:
    return replace(facts, lines=tuple(Line(label="", value=word) for word in answer.split()))


READ_ALL: Final = Kind[DocumentFacts](
    type="ocr/text/read_sign",
    families=_FAMILIES,
    templates=("What does the sign say?", "Read the sign."),
    ask=lambda facts, rng: [()],
    find=_find_all,
    near=_near_all,
    forge=_forge_all,
)


def _find_background(facts: DocumentFacts, args: Args) -> Finding | None:
    if facts.kind != "sign":
        return None
    return Finding(
        answers=(facts.background,),
        evidence=(),
        says=f"The sign says {' '.join(line.value for line in facts.lines)}.",
        concludes=f"The sign is {facts.background}.",
    )


BACKGROUND: Final = Kind[DocumentFacts](
    type="coarse/attribute/sign_color",
    families=_FAMILIES,
    templates=("What color is the sign?", "Name the color of the sign."),
    ask=lambda facts, rng: [()],
    find=_find_background,
    near=lambda facts, args: list(COLOR_NAMES),
    forge=lambda facts, args, answer: replace(facts, background=answer),
)

# --- forms ------------------------------------------------------------------------------------------------------


def _find_value(facts: DocumentFacts, args: Args) -> Finding | None:
    i = _field(facts, args[0])
    if i is None:
        return None
    line = facts.lines[i]
    return Finding(
        answers=(line.value,),
        evidence=(f"line/{i}",),
        says=f"{line.label} is in line {i + 1}.",
        concludes=f"The {line.label} is {line.value}.",
    )


def _near_values(facts: DocumentFacts, args: Args) -> list[str]:
    i = _field(facts, args[0])
    assert i is not None
    return [*_near_value(facts.lines[i]), *(line.value for line in facts.lines)]


def _forge_value(facts: DocumentFacts, args: Args, answer: str) -> DocumentFacts | None:
    i = _field(facts, args[0])
    return None if i is None else _with(facts, i, replace(facts.lines[i], value=answer))


FIELD_VALUE: Final = Kind[DocumentFacts](
    type="ocr/document/field_value",
    families=_FAMILIES,
    slots=("field",),
    templates=("What is the {field}?", "Read the {field} on the form."),
    ask=lambda facts, rng: [(line.label,) for line in facts.lines if line.label],
    find=_find_value,
    near=_near_values,
    forge=_forge_value,
)


def _with_value(facts: DocumentFacts, value: str) -> int | None:
    """The one line of a form with this value."""
    found = [i for i, line in enumerate(facts.lines) if line.label and same(line.value, value)]
    return found[0] if len(found) == 1 else None


def _find_field(facts: DocumentFacts, args: Args) -> Finding | None:
    i = _with_value(facts, args[0])
    if i is None:
        return None
    line = facts.lines[i]
    return Finding(
        answers=(line.label,),
        evidence=(f"line/{i}",),
        says=f"Line {i + 1} says {line.text}.",
        concludes=f"{line.value} is the {line.label}.",
    )


def _forge_field(facts: DocumentFacts, args: Args, answer: str) -> DocumentFacts | None:
    """Rename the field; where the other name is on the form too, the two change places."""
    i, j = _with_value(facts, args[0]), _field(facts, answer)
    if i is None:
        return None
    forged = facts if j is None else _with(facts, j, replace(facts.lines[j], label=facts.lines[i].label))
    return _with(forged, i, replace(facts.lines[i], label=answer))


def _near_fields(facts: DocumentFacts, args: Args) -> list[str]:
    """Fields with the same sort of value are the tempting ones: numbers are told apart by reading only."""
    is_number = args[0].isdigit()
    return sorted(FIELDS, key=lambda field: (field in _NUMBER_FIELDS) != is_number)


FIELD_NAME: Final = Kind[DocumentFacts](
    type="ocr/document/field_name",
    families=_FAMILIES,
    slots=("value",),
    templates=("Which field says {value}?", "Name the field that says {value}."),
    ask=lambda facts, rng: [(line.value,) for line in facts.lines if line.label],
    find=_find_field,
    near=_near_fields,
    forge=_forge_field,
)

# --- existence --------------------------------------------------------------------------------------------------


def _absent_like(line: Line, facts: DocumentFacts, rng: random.Random) -> str:
    """A value of the same sort that the document does not show."""
    used = {other.value for other in facts.lines}
    if line.label == "Code":
        sort = near_codes(line.value)
    else:
        sort = _VOCABULARIES.get(line.label) or [str(number) for number in range(1, 100)]
    return rng.choice([value for value in sort if value not in used])


def _ask_text(facts: DocumentFacts, rng: random.Random) -> list[Args]:
    present = [(line.value,) for line in facts.lines]
    absent = [(_absent_like(line, facts, rng),) for line in facts.lines]
    return list(dict.fromkeys([*present, *absent]))


def _in_display_case(text: str, facts: DocumentFacts) -> str:
    """Parsed text is in lower case: signs and codes are drawn in capitals, other words with a capital."""
    is_word = text.capitalize() in (*NAMES, *CITIES, *DAYS)
    return text.capitalize() if is_word and facts.kind == "form" else text.upper()


def _find_text(facts: DocumentFacts, args: Args) -> Finding:
    found = [i for i, line in enumerate(facts.lines) if same(line.value, args[0])]
    word = facts.lines[found[0]].value if found else _in_display_case(args[0], facts)
    return Finding(
        answers=yes_no(bool(found)),
        evidence=tuple(f"line/{i}" for i in found),
        says=f"I read {listing([line.text for line in facts.lines])}.",
        concludes=f"Line {found[0] + 1} says {word}." if found else f"No line says {word}.",
    )


def _forge_text(facts: DocumentFacts, args: Args, answer: str) -> DocumentFacts | None:
    if answer == "yes":
        return _with(facts, 0, replace(facts.lines[0], value=_in_display_case(args[0], facts)))
    forged = facts
    for i, line in enumerate(facts.lines):
        if same(line.value, args[0]):
            misread = [value for value in _near_value(line) if not same(value, args[0])]
            forged = _with(forged, i, replace(line, value=misread[0]))
    return forged


HAS_TEXT: Final = Kind[DocumentFacts](
    type="logic/existence/text",
    families=_FAMILIES,
    slots=("text",),
    templates=("Does any line say {text}?", "Can you read {text} here?"),
    ask=_ask_text,
    find=_find_text,
    near=lambda facts, args: other_yes_no(_find_text(facts, args).answers[0]),
    forge=_forge_text,
)

DOCUMENT_KINDS: Final = (READ_LINE, COUNT, READ_ALL, BACKGROUND, FIELD_VALUE, FIELD_NAME, HAS_TEXT)
