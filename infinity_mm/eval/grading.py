"""Whether a reply is one of the accepted answers, for questions whose answer is short."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final, Literal

Grading = Literal["exact", "normalised"]

_MARK: Final = re.compile(r"answer\s*:", re.IGNORECASE)
_TOKEN: Final = re.compile(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+|%")
_THOUSANDS: Final = re.compile(r",(?=\d{3}(?!\d))")
_ARTICLES: Final = frozenset({"a", "an", "the"})
_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS: Final = {word: str(number) for number, word in enumerate(_NUMBERS)}


def exact(reply: str, accepted: Sequence[str]) -> bool:
    """Whether the reply is an accepted answer, spaces around it aside."""
    return reply.strip() in {answer.strip() for answer in accepted}


def normalised(reply: str, accepted: Sequence[str]) -> bool:
    """Whether it is one but for case, punctuation, articles, and numbers in words; see `final_answer`."""
    said = final_answer(reply)
    return said in {final_answer(answer) for answer in accepted} if said else exact(reply, accepted)


def final_answer(text: str) -> str:
    """What follows the last `Answer:`, or all of the text, as bare words; signs and decimals of numbers stay."""
    last = unicodedata.normalize("NFKC", _MARK.split(text)[-1]).casefold()
    words = [_THOUSANDS.sub("", word) for word in _TOKEN.findall(last)]
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


GRADERS: Final[dict[Grading, Callable[[str, Sequence[str]], bool]]] = {
    "exact": exact,
    "normalised": normalised,
}
