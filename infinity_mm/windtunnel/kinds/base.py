"""What a kind of question is: its wording, its answer on a scene, and the nearest scenes with another answer.

    facts + arguments -> find -> Finding (answers, evidence, sentences)
    facts + arguments + another answer -> forge -> facts of a scene on which that answer is right

A wrong answer is the right answer on a forged scene, so that every sentence around it agrees with it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from infinity_mm.windtunnel.scene import Facts

Args = tuple[str, ...]
"""What a question is about, one for each slot of its kind; in lower case when parsed."""
F = TypeVar("F", bound=Facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a scene says to a question."""

    answers: tuple[str, ...]
    """Accepted answers, the canonical one first."""
    evidence: tuple[str, ...]
    """Keys of the layout boxes that the answer rests on; empty means the whole image."""
    says: str
    """What there is to see before the conclusion."""
    concludes: str
    """The sentence that holds the answer."""


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[F]):
    """One type of question; `F` is the class of the facts that it can be asked about."""

    type: str
    """Three-level instruction type."""
    families: tuple[str, ...]
    """Families of images on which it may have an answer."""
    slots: tuple[str, ...] = ()
    """Names of the gaps in the templates, in the order of the arguments."""
    templates: tuple[str, str]
    """Two wordings."""
    ask: Callable[[F, random.Random], list[Args]]
    """Distinct questions worth asking, frequent answers thinned out; in some kinds in display case."""
    find: Callable[[F, Args], Finding | None]
    """The answer, or None where the scene has none; arguments in any case."""
    near: Callable[[F, Args], list[str]]
    """Answers that differ from the right one by one fact, tempting mistakes first."""
    forge: Callable[[F, Args, str], F | None]
    """Facts on which the given answer is right, close to the given facts; None where there are none."""


def yes_no(is_true: bool) -> tuple[str, ...]:
    """The accepted answer to a yes/no question."""
    return ("yes",) if is_true else ("no",)


def other_yes_no(answer: str) -> list[str]:
    """The only wrong answer to a yes/no question."""
    return ["no" if answer == "yes" else "yes"]


def balanced(groups: Sequence[list[Args]], rng: random.Random) -> list[Args]:
    """As many questions from each group (one group for each answer) as the smallest non-empty group holds."""
    filled = [group for group in groups if group]
    size = min((len(group) for group in filled), default=0)
    return [args for group in filled for args in rng.sample(group, size)]


def near_numbers(value: int, low: int, high: int) -> list[str]:
    """Off by one or two, or one digit misread; always a number that such an image may show.

    A wrong answer must not give itself away: a judge that never looks at the image shall not profit.
    """
    near = [value + 1, value - 1, value + 2, value - 2]
    digits = str(value)
    near += [int(digits[:i] + _DIGIT_TWINS[digit] + digits[i + 1 :]) for i, digit in enumerate(digits)]
    return list(dict.fromkeys(str(number) for number in near if low <= number <= high))


def near_codes(code: str) -> list[str]:
    """One character taken for its look-alike; the result is a code that a form may show."""
    return [code[:i] + _CODE_TWINS[character] + code[i + 1 :] for i, character in enumerate(code)]


def near_words(word: str, vocabulary: Sequence[str]) -> list[str]:
    """The words of the vocabulary that look most like this one, then this one with one letter misread."""
    others = sorted(
        (other for other in vocabulary if other != word), key=lambda other: _distance(word, other)
    )
    misread = [word[:i] + _LETTER_TWINS[c] + word[i + 1 :] for i, c in enumerate(word) if c in _LETTER_TWINS]
    return [*others[:_NUM_LOOK_ALIKES], *misread]


def _distance(word: str, other: str) -> int:
    return abs(len(word) - len(other)) + sum(a != b for a, b in zip(word, other, strict=False))


_NUM_LOOK_ALIKES: Final = 3
_DIGIT_TWINS: Final = dict(zip("0123456789", "8778963134", strict=True))
_CODE_TWINS: Final = dict(zip("ACEFHKLMNPRTUXY34679", "46FEMXTNMRPYHKT9ACTP", strict=True))
_LETTER_TWINS: Final = dict(
    zip(
        "ABCEFGHIKLMNOPRSTUVWXYZabcdeghiklmnopqrstuvyz",
        "HRGFEOAJXINMQRPZIVUVKXSoheocqnltinmapgvzfuvxs",
        strict=True,
    )
)


def replaced(items: tuple, index: int, item: object) -> tuple:
    """The tuple with one item exchanged."""
    return (*items[:index], item, *items[index + 1 :])


def same(first: str, second: str) -> bool:
    """Equal but for case: parsed arguments are in lower case, labels are not."""
    return first.lower() == second.lower()
