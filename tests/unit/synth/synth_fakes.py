"""Fake engines and tiny samples for the tests of the stages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infinity_mm.engines.base import (
    Capabilities,
    Failure,
    Likelihood,
    Reply,
    Request,
    Scoring,
    no_likelihoods,
)
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ImageRef, Outcome, Sample
from infinity_mm.synth.stage import Context, Stage

Say = Callable[[Request], Reply | Failure]
Score = Callable[[Scoring], Likelihood | Failure]


@dataclass
class FakeEngine:
    """Answers with a function of the request, and remembers what it was asked."""

    say: Say
    logprobs: bool = True
    images: int = 8
    likelihood: Score | None = None
    """How texts are scored, for an engine that can."""
    fingerprint: str = "fake"
    batches: list[list[Request]] = field(default_factory=list)
    scored: list[list[Scoring]] = field(default_factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            images_per_prompt=self.images,
            choice_logprobs=self.logprobs,
            seeds=True,
            reproducible="exact",
            likelihood=self.likelihood is not None,
        )

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.batches.append(list(requests))
        await asyncio.sleep(0)
        return [self.say(request) for request in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        if self.likelihood is None:
            return no_likelihoods(scorings)
        self.scored.append(list(scorings))
        await asyncio.sleep(0)
        return [self.likelihood(scoring) for scoring in scorings]


PICTURE = ImageRef(sha256="ab" * 32, uri="/a.png", width=64, height=48, phash="0" * 16)
NANO = PromptSet.load("nano")


def seen(id_: str = "a", **fields: object) -> Sample:
    return Sample(id=id_, images=(PICTURE,), **fields)  # type: ignore[arg-type]


def prompt_of(request: Request) -> str:
    return request.turns[-1].text


def saying(text: str) -> FakeEngine:
    return FakeEngine(lambda request: Reply(text=text))


def by_prompt(replies: Mapping[str, str]) -> FakeEngine:
    """The reply whose key is in the prompt; the first key wins."""

    def say(request: Request) -> Reply:
        return Reply(text=next(reply for key, reply in replies.items() if key in prompt_of(request)))

    return FakeEngine(say)


def context(teacher: FakeEngine, judge: FakeEngine | None = None, prompts: PromptSet = NANO) -> Context:
    return Context(engines={"teacher": teacher, "judge": judge or teacher}, prompts=prompts, seed=7)


def outcomes_of(
    stage: Stage, samples: Sequence[Sample], teacher: FakeEngine, judge: FakeEngine | None = None
) -> list[Outcome]:
    return asyncio.run(stage.run(samples, context(teacher, judge)))


def told(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """(kind, id or reason) of every outcome, short enough to compare as a literal."""
    return [
        (type(outcome).__name__, getattr(outcome, "reason", "") or getattr(outcome, "into", ""))
        for outcome in outcomes
    ]
