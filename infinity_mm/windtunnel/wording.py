"""Question text to query and back: two templates for each kind of question, and nothing learned.

Query(type, args) -> render -> text -> parse -> Query
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from infinity_mm.windtunnel.kinds import KINDS
from infinity_mm.windtunnel.kinds.base import Args
from infinity_mm.windtunnel.words import (
    CITIES,
    COLOR_NAMES,
    DAYS,
    FIELDS,
    ITEMS,
    NAMES,
    NUMBER_HEADERS,
    PLACE_NAMES,
    SHAPES,
    SIGN_WORDS,
    SIZES,
    plural,
    with_article,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A question that was understood."""

    type: str
    """Instruction type."""
    args: Args
    """What it is about; in lower case where the query was parsed."""


@dataclass(frozen=True, kw_only=True)
class _Slot:
    pattern: str
    show: Callable[[str], str] = str
    read: Callable[[str], str] = str


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted({word.lower() for word in words}, key=lambda word: (-len(word), word)))


def _singular(things: str) -> str:
    return things.removesuffix("es") if things.endswith("crosses") else things.removesuffix("s")


_ADJECTIVES: Final = rf"(?:(?:{_any_of(SIZES)}) )?(?:(?:{_any_of(COLOR_NAMES)}) )?"
_THING: Final = rf"{_ADJECTIVES}(?:{_any_of((*SHAPES, 'object'))})"
_THINGS: Final = rf"{_ADJECTIVES}(?:{_any_of(plural(shape) for shape in (*SHAPES, 'object'))})"
_NUMBER_OR_CODE: Final = r"[0-9]{1,2}|[a-z0-9]{3}"

_SLOTS: Final = {
    "thing": _Slot(pattern=_THING),
    "a_thing": _Slot(pattern=_THING, show=with_article),
    "things": _Slot(pattern=_THINGS, show=plural, read=_singular),
    "relation": _Slot(pattern="left of|right of|above|below"),
    "place": _Slot(pattern=_any_of(PLACE_NAMES)),
    "item": _Slot(pattern=_any_of(ITEMS)),
    "header": _Slot(pattern=_any_of(NUMBER_HEADERS)),
    "field": _Slot(pattern=_any_of(FIELDS)),
    "value": _Slot(pattern=f"{_any_of((*NAMES, *CITIES, *DAYS))}|{_NUMBER_OR_CODE}"),
    "text": _Slot(pattern=f"{_any_of((*SIGN_WORDS, *NAMES, *CITIES, *DAYS))}|{_NUMBER_OR_CODE}"),
    "index": _Slot(pattern="[1-9]"),
}
"""Every gap that a template may have; a second gap of the same sort carries a digit, as in `{item2}`."""

_GAP: Final = re.compile(r"\{([a-z_]+)(\d?)\}")
_ARTICLES: Final = re.compile(r"\b(?:the|an?|please)\b")
_NOISE: Final = re.compile(r"[^a-z0-9{}_]+")


def plain(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces, American spelling."""
    words = _ARTICLES.sub(" ", _NOISE.sub(" ", text.lower().replace("colour", "color")))
    return " ".join(words.split())


def render(type: str, args: Args, rng: random.Random) -> str:
    """The question in one of its two wordings."""
    kind = KINDS[type]
    by_gap = dict(zip(kind.slots, args, strict=True))
    return _GAP.sub(lambda gap: _SLOTS[gap[1]].show(by_gap[gap[1] + gap[2]]), rng.choice(kind.templates))


def parse(text: str) -> Query | None:
    """The query behind a question text; None where no template fits."""
    words = plain(text)
    for pattern, type in _patterns().get(words.partition(" ")[0], ()):
        match = pattern.fullmatch(words)
        if match:
            slots = KINDS[type].slots
            return Query(type=type, args=tuple(_SLOTS[slot.rstrip("2")].read(match[slot]) for slot in slots))
    return None


@cache
def _patterns() -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """Compiled templates by their first word, which is never a gap."""
    patterns: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for kind in KINDS.values():
        for template in kind.templates:
            words = plain(template)
            regex = _GAP.sub(lambda gap: f"(?P<{gap[1]}{gap[2]}>{_SLOTS[gap[1]].pattern})", words)
            patterns.setdefault(words.partition(" ")[0], []).append((re.compile(regex), kind.type))
    return patterns
