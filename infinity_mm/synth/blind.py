"""Blind: would the answer be found without looking? What is known without the image teaches no seeing.

question, without the image --teacher or judge--> short answer --same as the pair's?--> label `blind`, 1 or 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from infinity_mm.engines.base import Failure, Reply
from infinity_mm.errors import explain
from infinity_mm.quality.agreement import agrees
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.choice import STYLE as CHOICE
from infinity_mm.synth.choice import letter_of
from infinity_mm.synth.exchange import Exchange, Prompt, keep
from infinity_mm.synth.stage import Context


@dataclass(frozen=True, kw_only=True)
class BlindConfig:
    """Who is asked without the image."""

    role: Literal["teacher", "judge"] = "teacher"
    """The engine that guesses. A larger model knows more without looking."""
    max_new_tokens: int = 32
    """Room for a short answer; what needs more is no guess."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise explain(
                what=f"max_new_tokens={self.max_new_tokens} leaves no room for an answer",
                where="BlindConfig (YAML section `blind`)",
                fix="set blind.max_new_tokens to at least 1, usually 16 to 64",
            )


@final
class Blind:
    """Writes the label `blind` of every pair and drops nothing: what follows from it is the policy's business."""

    name = "blind"
    reads = frozenset({"question", "answer"})
    writes = frozenset({"labels"})
    prompts = frozenset({"answer_short"})
    needs_probabilities = frozenset[str]()

    def __init__(self, config: BlindConfig) -> None:
        """Greedy: the first thing that comes to mind."""
        self.roles = frozenset[str]({config.role})
        self._exchange = Exchange(
            stage=self.name, role=config.role, max_new_tokens=config.max_new_tokens, without_images=True
        )

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One call per question; the pairs of its other styles find its reply in the journal."""
        return await self._exchange.run(samples, context, write=_write, read=_read, unsaid=_read)


def _write(sample: Sample) -> Prompt:
    return Prompt(name="answer_short", fields={"question": sample.question or ""})


def _read(sample: Sample, reply: Reply | Failure) -> Outcome:
    """A model that declines to guess, or guesses at length, has not found the answer."""
    found = isinstance(reply, Reply) and reply.finish_reason == "stop" and _found(sample, reply.text)
    return keep(sample.with_label("blind", float(found)))


def _found(sample: Sample, guess: str) -> bool:
    answer = sample.answer or ""
    letter = letter_of(guess) if sample.style == CHOICE else None
    return agrees(guess, answer) if letter is None else letter == letter_of(answer)
