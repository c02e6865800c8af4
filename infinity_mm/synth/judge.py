"""Judge: a score record for every question-answer pair; what happens to the pair is the policy's business.

image, question, answer --judge--> score 1 to 10, its expectation and its uncertainty
                               or: {"reason": ..., "score": ...}, the reason first, so that the score follows from it
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from infinity_mm.engines.base import Reply
from infinity_mm.engines.named import stated_number
from infinity_mm.errors import explain
from infinity_mm.record import Outcome, Sample, Score, canonical_json
from infinity_mm.synth.exchange import REPAIR, Exchange, Prompt, keep, unreadable
from infinity_mm.synth.stage import Context

CHOICES = tuple(str(score) for score in range(1, 11))
_LEAST_FOR_A_REASON = 64
SCHEMA = canonical_json(
    {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "score": {"type": "integer", "minimum": 1, "maximum": 10},
        },
        "required": ["reason", "score"],
        "additionalProperties": False,
    }
)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How pairs are judged."""

    max_new_tokens: int = 16
    """Room for one number and the words some servers put around it; with a reason, for that too."""
    with_reason: bool = False
    """Ask for the reason and then the score, as JSON. It costs tokens, and there are no probabilities of scores."""

    def __post_init__(self) -> None:
        if self.with_reason and self.max_new_tokens < _LEAST_FOR_A_REASON:
            raise explain(
                what=f"a reason and a score do not fit in max_new_tokens={self.max_new_tokens}",
                where="JudgeConfig (YAML section `judge`)",
                fix=f"set judge.max_new_tokens to at least {_LEAST_FOR_A_REASON}, usually 256",
            )


@final
class Judge:
    """Writes `score`; a pair whose score cannot be read is quarantined, never given a default."""

    name = "judge"
    reads = frozenset({"question", "answer"})
    writes = frozenset({"score"})
    roles = frozenset({"judge"})
    needs_probabilities = frozenset[str]()

    def __init__(self, config: JudgeConfig) -> None:
        """Every pair is judged on its own: a judge that sees several compares them."""
        self._config = config
        self.prompts = judge_prompts(config)
        self._exchange = judge_exchange(self.name, config)

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One call per pair."""
        write = partial(write_judge, self._config)
        return await self._exchange.run(samples, context, write=write, read=self._read)

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        score = read_score(reply, self._config)
        if score is None:
            return unreadable(sample, self.name, "unreadable_score", reply)
        return keep(replace(sample, score=score))


def judge_exchange(stage: str, config: JudgeConfig, *, step: str = "", draw: int = 0) -> Exchange:
    """The call to the judge, for this stage and for those that have a changed answer judged again."""
    return Exchange(
        stage=stage,
        role="judge",
        max_new_tokens=config.max_new_tokens,
        choices=() if config.with_reason else CHOICES,
        schema=SCHEMA if config.with_reason else None,
        step=step,
        draw=draw,
    )


def judge_prompts(config: JudgeConfig) -> frozenset[str]:
    """Names of the prompts that the call uses."""
    return frozenset({"judge_reason", REPAIR} if config.with_reason else {"judge"})


def write_judge(config: JudgeConfig, sample: Sample) -> Prompt:
    """The prompt for one pair; the style is not told, so that long answers are not judged by their kind."""
    name = "judge_reason" if config.with_reason else "judge"
    return Prompt(name=name, fields={"question": sample.question or "", "answer": sample.answer or ""})


def read_score(reply: Reply, config: JudgeConfig) -> Score | None:
    """The score record in a reply; None if no score from 1 to 10 can be read."""
    if config.with_reason:
        said = json.loads(reply.text)
        return Score(overall=said["score"], reason=said["reason"].strip())
    overall = read_number(reply.text)
    if overall is None:
        return None
    if reply.choice_logprobs is None:
        return Score(overall=overall)
    expected, uncertainty = moments(reply.choice_logprobs)
    return Score(overall=overall, expected=expected, uncertainty=uncertainty)


def read_number(text: str) -> int | None:
    """The one score that a reply states: "8", "8/10", "Score: 8", "I would say 8."; None if none or several."""
    number = stated_number(text)
    return number if number is not None and 1 <= number <= 10 else None


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
