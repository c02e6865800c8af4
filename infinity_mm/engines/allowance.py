"""Ask for leave before every request that is sent, so that a budget is never passed.

requests --reserve--> as many as may be sent --engine--> answers --settle--> what they really took
               \\--none--> OUT_OF_BUDGET, which nobody records
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final, runtime_checkable

from infinity_mm.engines.base import Capabilities, Engine, Failure, Reply, Request

CUT_OFF = Failure(reason="cut_off", detail="the call was given up while it was under way")
"""Nobody waits for this answer any more; what was set aside for it is spent."""
OUT_OF_BUDGET = Failure(reason="out_of_budget", detail="the run's budget allows no further request")
"""Not an answer but the end of the run: `Journaled` raises it once everything else is recorded."""


@runtime_checkable
class Allowance(Protocol):
    """What may still be sent."""

    async def reserve(self, requests: Sequence[Request]) -> int:
        """Wait for leave; returns how many of the requests may be sent, from the first; 0 is the end."""
        ...

    def settle(self, request: Request, answer: Reply | Failure) -> None:
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
        answers: list[Reply | Failure] = []
        while len(answers) < len(requests):
            rest = requests[len(answers) :]
            number = await self._allowance.reserve(rest)
            if not number:
                return [*answers, *[OUT_OF_BUDGET] * len(rest)]
            sent = rest[:number]
            got: list[Reply | Failure] = [CUT_OFF] * number
            try:
                got = await self._engine.generate(sent)
            finally:
                for request, answer in zip(sent, got, strict=True):
                    self._allowance.settle(request, answer)
            answers += got
        return answers
