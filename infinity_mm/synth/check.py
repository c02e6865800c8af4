"""Check: can the question be answered from the image?

image, question --teacher--> yes | no, with a probability where the engine gives one
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from infinity_mm.engines.base import Reply
from infinity_mm.errors import explain
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.exchange import Exchange, Prompt, drop, keep, unreadable
from infinity_mm.synth.stage import Context

CHOICES = ("yes", "no")
_WORD = re.compile(r"^\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """When a question counts as answerable."""

    min_probability: float | None = None
    """Least probability of "yes"; needs an engine with log-probabilities. null: the word decides."""
    max_new_tokens: int = 4
    """Room for one word."""

    def __post_init__(self) -> None:
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise explain(
                what=f"min_probability={self.min_probability} is not a probability",
                where="CheckConfig (YAML section `check`)",
                fix="set check.min_probability between 0 and 1, or to null to go by the word",
            )


@final
class Check:
    """Drops questions that the image does not answer."""

    name = "check"
    reads = frozenset({"question"})
    writes = frozenset[str]()
    roles = frozenset({"teacher"})
    prompts = frozenset({"check"})

    def __init__(self, config: CheckConfig) -> None:
        """A probability can only be compared where the engine gives it, which is checked before the run."""
        self._config = config
        self.needs_probabilities = frozenset({"teacher"} if config.min_probability is not None else ())
        self._exchange = Exchange(
            stage=self.name, role="teacher", max_new_tokens=config.max_new_tokens, choices=CHOICES
        )

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One call per question."""
        return await self._exchange.run(samples, context, write=_write, read=self._read)

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        answerable = read_check(reply, self._config)
        if answerable is None:
            return unreadable(sample, self.name, "unreadable_check", reply)
        return keep(sample) if answerable else drop(sample, self.name, "not_answerable")


def read_check(reply: Reply, config: CheckConfig) -> bool | None:
    """Whether the reply means yes; None if it cannot be read."""
    if config.min_probability is not None:
        if reply.choice_logprobs is None or len(reply.choice_logprobs) != len(CHOICES):
            return None
        probability = math.exp(reply.choice_logprobs[0])
        return probability >= config.min_probability if math.isfinite(probability) else None
    word = _WORD.match(reply.text)
    return word.group(1).lower() == "yes" if word else None


def _write(sample: Sample) -> Prompt:
    return Prompt(name="check", fields={"question": sample.question or ""})
