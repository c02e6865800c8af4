"""Judge: a score record for every question-answer pair; what happens to the pair is the policy's business.

image, question, answer --judge--> score 1 to 10, its expectation and its uncertainty
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from infinity_mm.engines.base import Reply
from infinity_mm.record import Outcome, Sample, Score
from infinity_mm.synth.exchange import Exchange, Prompt, keep, unreadable
from infinity_mm.synth.stage import Context

CHOICES = tuple(str(score) for score in range(1, 11))
_NUMBER = r"(?<![\d.\-])(\d{1,2})(?:\.0+)?(?!\.?\d)"
_NAMED = re.compile(rf"(?:score|rating)\b\W*(?:is|of|:|=)?\W*{_NUMBER}", re.IGNORECASE)
_OF_TEN = re.compile(rf"{_NUMBER}\s*(?:/|out of)\s*10\b", re.IGNORECASE)
_ANY = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How pairs are judged."""

    max_new_tokens: int = 4
    """Room for one number."""


@final
class Judge:
    """Writes `score`; a pair whose score cannot be read is quarantined, never given a default."""

    name = "judge"
    reads = frozenset({"question", "answer"})
    writes = frozenset({"score"})
    roles = frozenset({"judge"})
    prompts = frozenset({"judge"})
    needs_probabilities = frozenset[str]()

    def __init__(self, config: JudgeConfig) -> None:
        """Every pair is judged on its own: a judge that sees several compares them."""
        self._exchange = judge_exchange(self.name, config)

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One call per pair."""
        return await self._exchange.run(samples, context, write=write_judge, read=self._read)

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        score = read_score(reply)
        if score is None:
            return unreadable(sample, self.name, "unreadable_score", reply)
        return keep(replace(sample, score=score))


def judge_exchange(stage: str, config: JudgeConfig, *, step: str = "", draw: int = 0) -> Exchange:
    """The call to the judge, for this stage and for those that have a changed answer judged again."""
    return Exchange(
        stage=stage, role="judge", max_new_tokens=config.max_new_tokens, choices=CHOICES, step=step, draw=draw
    )


def write_judge(sample: Sample) -> Prompt:
    """The prompt for one pair; the style is not told, so that long answers are not judged by their kind."""
    return Prompt(name="judge", fields={"question": sample.question or "", "answer": sample.answer or ""})


def read_score(reply: Reply) -> Score | None:
    """The score record in a reply; None if no score from 1 to 10 can be read."""
    overall = read_number(reply.text)
    if overall is None:
        return None
    if reply.choice_logprobs is None:
        return Score(overall=overall)
    expected, uncertainty = moments(reply.choice_logprobs)
    return Score(overall=overall, expected=expected, uncertainty=uncertainty)


def read_number(text: str) -> int | None:
    """The one score that a reply states: "8", "8/10", "Score: 8", "I would say 8."; None if none or several."""
    for pattern in (_NAMED, _OF_TEN):
        found = pattern.findall(text)
        if found:
            return _in_range(found[-1])
    numbers = set(_ANY.findall(text))
    if len(numbers) != 1:
        return None
    number = numbers.pop().removesuffix(".0")
    return _in_range(number) if number.isdecimal() else None


def moments(logprobs: Sequence[float]) -> tuple[float, float]:
    """Mean of the score and entropy in nats, from the log-probabilities of `CHOICES`; raises if they are none."""
    weights = [math.exp(logprob) for logprob in logprobs]
    total = sum(weights)
    if len(weights) != len(CHOICES) or not math.isfinite(total) or total <= 0:
        raise ValueError(f"expected {len(CHOICES)} log-probabilities, got {list(logprobs)}")
    shares = [weight / total for weight in weights]
    mean = sum(score * share for score, share in enumerate(shares, start=1))
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return round(mean, 6), round(max(0.0, entropy), 6)


def _in_range(number: str) -> int | None:
    return int(number) if len(number) < 3 and 1 <= int(number) <= 10 else None
