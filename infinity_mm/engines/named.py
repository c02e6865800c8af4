"""Which of the given choices a free text names: a server that cannot be forced says "Yes." or "Score: 8/10".

text --cut off? only its closed sentences--> the number it states | the one choice that stands in it | None
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = r"(?<![\d.,\-\u2212\u2013])(\d{1,2})(?:\.0+)?(?![.,]?\d)(?!\s*[-\u2013~]\s*\d)"
"""A whole number of at most two digits: not signed, not part of a fraction, not the beginning of a range."""
_SCALE = re.compile(r"(?<!\d)[01]\s*(?:-|\u2013|~|to|到|至)\s*10(?!\d)", re.IGNORECASE)
"""The question's own words, as in "Score (1-10): 8"."""
_LABELLED = re.compile(
    rf"(?:(?:score|rating)\b|评分|得分|分数)\W*(?:is|of|为|是)?\W*?{_NUMBER}(?!\s*%)", re.IGNORECASE
)
_OF_TEN = re.compile(
    rf"{_NUMBER}\s*(?:分\s*)?(?:/|(?:out )?of|[(\uff08,\uff0c]?\s*满分)\s*[为是]?\s*10(?!\.?\d)",
    re.IGNORECASE,
)
_FIRST_LINE = re.compile(rf"[ *]*{_NUMBER}[ *]*分?[ *.]*\n")
_ANY = re.compile(r"[-\u2212\u2013]?\d+(?:[.,]\d+)*%?")
_CLOSED = re.compile(r".*(?:[.!?,;](?=\s)|[。\uff01\uff1f\uff0c\uff1b\n])", re.DOTALL)
"""Up to the last mark after which what stands before it does not change any more."""


def named_choice(text: str, choices: Sequence[str], *, is_cut_off: bool = False) -> str | None:
    """The one choice that a text names; None if it names none or several.

    Numbers are read as `stated_number` does. Of a text that was cut off only what is closed counts ("Score: 1" may
    have become "Score: 10"), and a number only with its label, its "out of 10" or a line of its own: another may have
    been the beginning of a list, or the count of something.
    """
    if is_cut_off:
        closed = _CLOSED.match(text)
        text = closed[0] if closed else ""
    if all(choice.isdecimal() for choice in choices):
        number = str(stated_number(text, is_cut_off=is_cut_off))
        return number if number in choices else None
    if text in choices:
        return text
    same = [choice for choice in choices if choice.casefold() == text.casefold().strip(" .!\"'*`")]
    inside = [c for c in choices if re.search(rf"(?<!\w){re.escape(c)}(?!\w)", text, re.IGNORECASE)]
    for found in (same, inside):
        if len(found) == 1:
            return found[0]
    return None


def stated_number(text: str, *, is_cut_off: bool = False) -> int | None:
    """The one number that a text states: "8", "8/10", "8分", "Score: 8", "I would say 8."; None if none or several.

    One behind a label ("score") counts before one out of ten, and that before any other; signed numbers, fractions,
    ranges, percentages and numbers of three digits are none. `is_cut_off`: see `named_choice`.
    """
    text = _SCALE.sub(" ", text)
    for pattern in (_LABELLED, _OF_TEN):
        if found := pattern.findall(text):
            return int(found[-1])
    if is_cut_off:
        line = _FIRST_LINE.match(text)
        return int(line[1]) if line else None
    numbers = set(_ANY.findall(text))
    if len(numbers) != 1:
        return None
    number = re.sub(r"\.0+$", "", numbers.pop())
    return int(number) if number.isdecimal() and len(number) < 3 else None
