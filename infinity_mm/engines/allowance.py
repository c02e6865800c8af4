"""Ask for leave before every request that is sent, so that a budget is never passed.

requests --reserve--> as many as may be sent --engine--> answers --settle--> what they really took
               \\--none--> OUT_OF_BUDGET, which nobody records
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, final, runtime_checkable

from infinity_mm.engines.base import Capabilities, Engine, Failure, Likelihood, Reply, Request, Scoring

Q = TypeVar("Q", Request, Scoring)
A = TypeVar("A", Reply, Likelihood)

CUT_OFF = Failure(reason="cut_off", detail="the call was given up while it was under way")
"""Nobody waits for this answer any more; what was set aside for it is spent."""
OUT_OF_BUDGET = Failure(reason="out_of_budget", detail="the run's budget allows no further request")
"""Not an answer but the end of the run: `Journaled` raises it once everything else is recorded."""


@runtime_checkable
class Allowance(Protocol):
    """What may still be sent."""

    async def reserve(self, requests: Sequence[Request | Scoring]) -> int:
        """Wait for leave; returns how many of the requests may be sent, from the first; 0 is the end."""
        ...

    def settle(self, request: Request | Scoring, answer: Reply | Likelihood | Failure) -> None:
        """Say what a request that was sent came to."""
        ...


@runtime_checkable
class Resending(Protocol):
    """An engine that may send a request several times, and so asks for leave itself, before every attempt."""

    allowance: Allowance | None


def with_allowance(engine: Engine, allowance: Allowance | None) -> Engine:
    """The engine, bound to an allowance; the engine itself for None."""
    if allowance is None:
        return engine
    if isinstance(engine, Resending):
        engine.allowance = allowance
        return engine
    return Allowed(engine, allowance)


@final
class Allowed:
    """Wraps an engine that sends every request once."""

    def __init__(self, engine: Engine, allowance: Allowance) -> None:
        self._engine = engine
        self._allowance = allowance

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner engine."""
        return self._engine.capabilities

    @property
    def fingerprint(self) -> str:
        """That of the inner engine."""
        return self._engine.fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """The inner engine's answers, and OUT_OF_BUDGET for what may not be sent any more."""
        return await self._send(requests, self._engine.generate)

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """The same for likelihoods."""
        return await self._send(scorings, self._engine.score)

    async def _send(
        self, asked: Sequence[Q], ask: Callable[[Sequence[Q]], Awaitable[list[A | Failure]]]
    ) -> list[A | Failure]:
        answers: list[A | Failure] = []
        while len(answers) < len(asked):
            rest = asked[len(answers) :]
            number = await self._allowance.reserve(rest)
            if not number:
                return [*answers, *[OUT_OF_BUDGET] * len(rest)]
            sent = rest[:number]
            got: list[A | Failure] = [CUT_OFF] * number
            try:
                got = await ask(sent)
            finally:
                for one, answer in zip(sent, got, strict=True):
                    self._allowance.settle(one, answer)
            answers += got
        return answers
