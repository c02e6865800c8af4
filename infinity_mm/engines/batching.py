"""Merge the calls of hundreds of journeys into batches for an engine that computes in this process.

`score` calls go the same way: a batch may hold both kinds, and the inner engine is given each kind apart.

    generate([a1, a2]) --\\
    generate([b1])     ----> waiting calls --a few of each in turn--> inner.generate([a1, a2, b1, ...])
    generate([c1, ..]) --/
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, final

from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    Failure,
    Likelihood,
    Reply,
    Request,
    Scoring,
)

_TURNS_PER_BATCH = 8
"""A call gives at most this part of a batch before the next call's turn, so that a large call delays nobody."""


@dataclass(slots=True)
class _Call:
    """One `generate` or `score` call and what it still waits for."""

    requests: Sequence[Request] | Sequence[Scoring]
    done: asyncio.Future[None]
    """Set when every request has its answer."""
    deadline: float
    """Loop time after which it goes into a batch that is not full."""
    answers: list[Any] = field(init=False)
    next: int = 0
    """Index of the first request that is not in a batch yet."""
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.requests)
        self.missing = len(self.requests)


@final
class MicroBatched:
    """Batches across calls; one batch at a time, which the inner engine computes off the event loop.

    An async context manager: on leaving it, calls that are waiting are still answered and new ones are refused.
    """

    def __init__(self, engine: Engine, *, max_batch: int, max_wait_s: float) -> None:
        """A request waits at most `max_wait_s` for company once the engine is free."""
        self._engine = engine
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._waiting: deque[_Call] = deque()
        self._num_waiting = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner engine."""
        return self._engine.capabilities

    @property
    def fingerprint(self) -> str:
        """That of the inner engine."""
        return self._engine.fingerprint

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="microbatch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._arrived.set()
        if self._worker is not None:
            await self._worker

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """One answer per request, in order, whatever batches they went through."""
        return await self._answers(requests)

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """The same for likelihoods."""
        return await self._answers(scorings)

    async def _answers(self, requests: Sequence[Request] | Sequence[Scoring]) -> list[Any]:
        if self._worker is None or self._closing:
            raise RuntimeError("MicroBatched.generate outside of its `async with` block")
        if not requests:
            return []
        loop = asyncio.get_running_loop()
        call = _Call(requests, done=loop.create_future(), deadline=loop.time() + self._max_wait_s)
        self._waiting.append(call)
        self._num_waiting += len(requests)
        self._arrived.set()
        await call.done
        return call.answers

    async def _work(self) -> None:
        while await self._wait_for_work():
            await self._wait_for_company()
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _wait_for_work(self) -> bool:
        """False once closing and nothing waits."""
        while not self._num_waiting:
            if self._closing:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        return True

    async def _wait_for_company(self) -> None:
        loop = asyncio.get_running_loop()
        while self._num_waiting < self._max_batch and not self._closing:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), self._waiting[0].deadline - loop.time())
            except TimeoutError:
                return

    def _take(self) -> list[tuple[_Call, int]]:
        """Up to `max_batch` requests, a share of each waiting call in turn; a caller that gave up is skipped."""
        share = max(1, self._max_batch // _TURNS_PER_BATCH)
        batch: list[tuple[_Call, int]] = []
        while self._waiting and len(batch) < self._max_batch:
            call = self._waiting.popleft()
            if call.done.done():
                self._num_waiting -= len(call.requests) - call.next
                continue
            stop = min(len(call.requests), call.next + share, call.next + self._max_batch - len(batch))
            batch += [(call, i) for i in range(call.next, stop)]
            self._num_waiting -= stop - call.next
            call.next = stop
            if stop < len(call.requests):
                self._waiting.append(call)
        return batch

    async def _answer(self, batch: Sequence[tuple[_Call, int]]) -> None:
        try:
            for (call, i), answer in zip(batch, await self._ask([c.requests[i] for c, i in batch])):
                call.answers[i] = answer
                call.missing -= 1
                if not call.missing and not call.done.done():
                    call.done.set_result(None)
        except Exception as error:  # every caller of this batch gets it; the others go on
            for call, _ in batch:
                if not call.done.done():
                    call.done.set_exception(error)

    async def _ask(self, batch: Sequence[Request | Scoring]) -> list[Any]:
        """Answers in the order of the batch, whose two kinds the engine computes one after the other."""
        requests = [each for each in batch if isinstance(each, Request)]
        scorings = [each for each in batch if isinstance(each, Scoring)]
        replies = iter(await self._engine.generate(requests) if requests else [])
        likelihoods = iter(await self._engine.score(scorings) if scorings else [])
        return [next(replies if isinstance(each, Request) else likelihoods) for each in batch]
