"""Multiple choice: the answer that was given among wrong ones, in an order that the seed decides.

    "What color is the door?" "red" --options--> ["blue", "green", "grey"] --arrange--> What color is the door?
                                                                                        A. green
                                                                                        B. red
                                                                                        C. grey       "B. red"
                                                                                        D. blue

The options become part of the question, so that judge, filters and student see what was chosen from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from infinity_mm.dedup.text import meaning, normalise
from infinity_mm.errors import explain
from infinity_mm.quality.agreement import agrees, is_yes_or_no
from infinity_mm.record import Sample, canonical_json

STYLE = "choice"
LETTERS = "ABCDEFGH"
_FIRST_OPTION = "\nA. "
_LETTER = re.compile(r"^\W*([A-H])(?![^\W_])")
_MAX_CHARS = 200
"""A longer answer is no option."""


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig:
    """How questions of style `choice` get their options."""

    num_options: int = 4
    """The right one and so many less one that are wrong."""
    max_new_tokens: int = 160
    """Room for the wrong ones."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_options <= len(LETTERS) or self.max_new_tokens < 1:
            raise explain(
                what=f"num_options={self.num_options}, max_new_tokens={self.max_new_tokens} give no choice",
                where="ChoiceConfig (YAML section `choice`)",
                fix=f"set choice.num_options between 2 and {len(LETTERS)}, and choice.max_new_tokens to 64 or more",
            )

    @property
    def schema(self) -> str:
        """Of the teacher's reply: one wrong answer to spare, for where two say the same."""
        wrong = {"type": "array", "items": {"type": "string"}, "minItems": self.num_options - 1}
        return canonical_json(
            {
                "type": "object",
                "properties": {"wrong": wrong},
                "required": ["wrong"],
                "additionalProperties": False,
            }
        )


def option_text(answer: str) -> str | None:
    """The answer as it stands beside a letter; None if it is no option: too long, several lines, yes or no."""
    text = answer.strip().removesuffix(".").rstrip()
    fits = 0 < len(text) <= _MAX_CHARS and "\n" not in text
    return text if fits and not is_yes_or_no(text) else None


def distinct_wrong(right: str, replies: Sequence[str], number: int) -> list[str]:
    """The first `number` wrong answers that say neither what the right one says nor what an earlier one does."""
    kept: list[str] = []
    for reply in replies:
        text = option_text(reply)
        if text and len(kept) < number and not any(_overlap(text, other) for other in (right, *kept)):
            kept.append(text)
    return kept


def arrange(question: str, right: str, wrong: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """(question with options, answer with its letter); every place is as likely for the right one."""
    options = rng.sample([right, *wrong], len(wrong) + 1)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join([question, *lines]), lines[options.index(right)]


def stem(sample: Sample) -> str:
    """The question without options."""
    question = sample.question or ""
    return question.partition(_FIRST_OPTION)[0] if sample.style == STYLE else question


def is_option(question: str, answer: str) -> bool:
    """Whether the answer is one of the question's options, letter and text."""
    return answer in question.split("\n")[1:]


def letter_of(answer: str) -> str | None:
    """The letter an answer begins with, None if it begins otherwise: "B", "(B)", "B. red"."""
    found = _LETTER.match(answer)
    return found[1] if found else None


def _overlap(left: str, right: str) -> bool:
    """Whether one says what the other says, or says it among more: "red" and "dark red" cannot both be offered."""
    if not meaning(left) or not meaning(right):
        return normalise(left) == normalise(right)
    return agrees(left, right) or agrees(right, left)
