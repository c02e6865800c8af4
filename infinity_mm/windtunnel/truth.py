"""The oracle: what a question has for an answer on a scene, and whether a given answer is right.

Only the final answer is graded. Sentences before it may be wrong; judging them is somebody else's claim to make.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from infinity_mm.windtunnel.kinds import KINDS
from infinity_mm.windtunnel.scene import Scene
from infinity_mm.windtunnel.wording import parse
from infinity_mm.windtunnel.words import NUMBER_WORDS

Grade = Literal["right", "wrong", "unanswerable", "not_understood"]

_DIGITS: Final = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
_ARTICLES: Final = frozenset({"a", "an", "the"})
_MARK: Final = re.compile(r"answer\s*:", re.IGNORECASE)
_NOISE: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The question was understood and has an answer."""

    answers: tuple[str, ...]
    """Accepted answers, the canonical one first."""
    type: str
    """Instruction type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unanswerable:
    """The question was understood, but this scene has no answer to it."""

    type: str
    """Instruction type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotUnderstood:
    """No template of the drawn world fits the question."""


def ask(scene: Scene, question_text: str) -> Accepted | Unanswerable | NotUnderstood:
    """What is true; unanswerable and not understood count as wrong in every figure and are reported apart."""
    query = parse(question_text)
    if query is None:
        return NotUnderstood()
    kind = KINDS[query.type]
    finding = kind.find(scene.facts, query.args) if scene.family in kind.families else None
    if finding is None:
        return Unanswerable(type=query.type)
    return Accepted(answers=finding.answers, type=query.type)


def final_answer(text: str) -> str:
    """What follows the last `Answer:`, or all of the text; lower case, no punctuation, no articles, digits."""
    last = _MARK.split(text)[-1]
    words = _NOISE.sub(" ", last.lower().replace("colour", "color")).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def grade(scene: Scene, question_text: str, answer_text: str) -> Grade:
    """Whether the final answer of `answer_text` is one of the accepted ones."""
    truth = ask(scene, question_text)
    if isinstance(truth, NotUnderstood):
        return "not_understood"
    if isinstance(truth, Unanswerable):
        return "unanswerable"
    return "right" if is_accepted(answer_text, truth.answers) else "wrong"


def is_accepted(answer_text: str, accepted: tuple[str, ...]) -> bool:
    """Whether the final answer of the text equals one of the accepted answers."""
    return final_answer(answer_text) in {final_answer(answer) for answer in accepted}
