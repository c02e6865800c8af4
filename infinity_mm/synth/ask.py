"""Ask: one question of the planned type about the image.

instruction type, two example questions --teacher--> question | dropped with a reason
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from infinity_mm.dedup.text import normalise
from infinity_mm.engines.base import Reply
from infinity_mm.errors import explain
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.asks import asks
from infinity_mm.synth.exchange import Exchange, Prompt, Rejected, drop, keep
from infinity_mm.synth.grounding import GroundingConfig, mark_box
from infinity_mm.synth.stage import Context

_LABEL = re.compile(
    r"^(?:\*{1,2})?(?:(?:new |your |the )?question(?: ?\d+)?|q\d*)(?:\*{1,2})?\s*[:\uff1a]\s*(?:\*{2}\s*)?",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[-*•]\s+|\(?\d{1,2}[.)]\s+)")
_QUOTES = {'"': '"', "“": "”", "'": "'", "「": "」", "`": "`", "**": "**"}


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """How questions are asked for."""

    temperature: float = 0.7
    """Above 0, or every image of a kind gets the same question."""
    max_new_tokens: int = 96
    """A question that needs more is dropped as `cut_off`."""
    min_chars: int = 6
    """Shorter questions are dropped."""
    max_chars: int = 400
    """Longer questions are dropped."""
    drop_copied_examples: bool = True
    """Whether a question that repeats one of its examples is dropped. In a small world a copy is a fair question."""
    describe_type: bool = True
    """Whether the prompt says what the type asks for and what the image must show for it, besides its name."""

    def __post_init__(self) -> None:
        if not 0 < self.min_chars <= self.max_chars:
            raise explain(
                what=f"min_chars={self.min_chars}, max_chars={self.max_chars} leave no question",
                where="AskConfig (YAML section `ask`)",
                fix="set ask.min_chars above 0 and ask.max_chars above it",
            )


@final
class Ask:
    """Writes `question`; drops a sample whose reply holds no question."""

    name = "ask"
    reads = frozenset({"instruction_type", "examples"})
    writes = frozenset({"question"})
    roles = frozenset({"teacher"})
    prompts = frozenset({"ask"})
    needs_probabilities = frozenset[str]()

    def __init__(
        self,
        config: AskConfig,
        descriptions: Mapping[str, str],
        *,
        boxed: Collection[str] = (),
        regions: GroundingConfig | None = None,
    ) -> None:
        """`descriptions`: type -> what it asks for, and of what image; `boxed`: types that ask about a box."""
        self._boxed = frozenset(boxed)
        self._regions = regions or GroundingConfig()
        self.config = config
        self._descriptions = descriptions if config.describe_type else {}
        self._exchange = Exchange(
            stage=self.name,
            role="teacher",
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            words="question",
        )

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One question per sample."""
        return await self._exchange.run(
            samples, context, write=self.write, read=partial(self.read, self.name)
        )

    def write(self, sample: Sample) -> Prompt:
        """The prompt for one sample."""
        assert sample.examples is not None, "see `reads`"
        first, second = sample.examples
        type_ = type_text(sample.instruction_type or "", self._descriptions)
        return Prompt(name="ask", fields={"type": type_, "example_1": first, "example_2": second})

    def read(self, stage: str, sample: Sample, reply: Reply) -> Outcome:
        """The sample with its question, or why there is none."""
        result = read_question(reply, examples=sample.examples or (), config=self.config)
        if sample.instruction_type in self._boxed and not isinstance(result, Rejected):
            result = mark_box(result, sample.images, self._regions)
        if isinstance(result, Rejected):
            return drop(replace(sample, question=reply.text), stage, result.reason)
        return keep(replace(sample, question=result))


def type_text(instruction_type: str, descriptions: Mapping[str, str]) -> str:
    """What the prompt says of a type: its path, and what it asks for where that is to be said."""
    description = descriptions.get(instruction_type)
    if description is None:
        return instruction_type
    return f"{instruction_type.replace('/', ' > ').replace('_', ' ')} ({description})"


def read_question(reply: Reply, *, examples: Sequence[str], config: AskConfig) -> str | Rejected:
    """The question in a reply, without label, bullet and quotes; or why there is none."""
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    if len(lines) != 1:
        return Rejected(reason="several_lines")
    question = _bare(lines[0])
    if question.strip(".").upper() == "NONE":
        return Rejected(reason="nothing_to_ask")
    if len(question) > config.max_chars:
        return Rejected(reason="too_long")
    if not asks(question):
        return Rejected(reason="no_question_in_reply")
    if len(question) < config.min_chars:
        return Rejected(reason="too_short")
    if config.drop_copied_examples and normalise(question) in {normalise(example) for example in examples}:
        return Rejected(reason="copied_example")
    return question


def _bare(line: str) -> str:
    line = _LABEL.sub("", _BULLET.sub("", line)).strip()
    for opening, closing in _QUOTES.items():
        inner = line[len(opening) : -len(closing)]
        if line.startswith(opening) and line.endswith(closing) and inner and opening not in inner:
            return inner.strip()
    return line
