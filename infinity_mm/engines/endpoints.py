"""Which server gets the next call, and how many it has at once.

affinity --rendezvous order--> first server that is up --wait for one of its places--> Place --call--> give_back
    a reply: one more place by and by       429, 503, a timeout: half of them       a slow reply: a few less
    lost connections in a row: the server is down; after a wait, that doubles, one call tries it again

Time is the event loop's, so that a test can give it one of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from infinity_mm.engines.base import Failure

LOST_TO_OPEN = 5
"""Calls lost in a row after which a server counts as down."""
FIRST_OPEN_S = 1.0
"""Until the first probe of a server that is down."""
_LOST = frozenset({"connection", "timeout", "http_502", "http_504"})
"""Nobody was there, or nobody that answered."""
_OVERLOADED = frozenset({"timeout", "http_429", "http_503"})
_SLOW_CUT, _OVERLOAD_CUT = 0.8, 0.5
_ROUNDS_TO_GROW = 16
"""Rounds of good replies from one place to all of them."""


@final
class AdaptiveLimit:
    """How many calls a server gets at once: additive increase, multiplicative decrease, from 1 to `most`.

    It begins at `most`, which is what a person believed the server can take.
    """

    def __init__(self, most: int, *, slow_s: float) -> None:
        self._most = most
        self._slow_s = slow_s
        self._limit = float(most)
        self._cut_at = -math.inf

    @property
    def value(self) -> int:
        """Calls at once."""
        return int(self._limit)

    def answered(self, *, sent_at: float, now: float) -> None:
        """A reply. One that took longer than `slow_s` waited in a queue, and the next ones may wait too long."""
        if now - sent_at > self._slow_s:
            self._cut(_SLOW_CUT, sent_at, now)
        else:
            self._limit = min(self._most, self._limit + self._most / _ROUNDS_TO_GROW / self._limit)

    def overloaded(self, *, sent_at: float, now: float) -> None:
        """The server says that it has too much, or was silent too long."""
        self._cut(_OVERLOAD_CUT, sent_at, now)

    def _cut(self, factor: float, sent_at: float, now: float) -> None:
        """Once per round: what was sent before the last cut says nothing about the limit of now."""
        if sent_at > self._cut_at:
            self._limit = max(1.0, self._limit * factor)
            self._cut_at = now


@final
class Breaker:
    """Closed, calls pass. Open, none does until a wait is over; then one probes, and closes it or doubles the wait."""

    def __init__(self, *, max_open_s: float) -> None:
        self._max_open_s = max_open_s
        self._lost = 0
        self._open_s = min(FIRST_OPEN_S, max_open_s)
        self.due_at: float | None = None
        """When a probe may go; infinite while one is under way; None while closed."""

    @property
    def is_open(self) -> bool:
        """Whether the server counts as down."""
        return self.due_at is not None

    def allows(self, now: float) -> bool:
        """Whether a call may go now."""
        return self.due_at is None or now >= self.due_at

    def probe(self) -> None:
        """One call goes to see whether the server is back; the others wait for what it brings."""
        self.due_at = math.inf

    def answered(self) -> None:
        """The server spoke, whatever it said."""
        self._lost, self.due_at = 0, None
        self._open_s = min(FIRST_OPEN_S, self._max_open_s)

    def lost(self, now: float, *, is_probe: bool) -> None:
        """A call got no answer; calls that were under way when it opened prolong nothing."""
        self._lost += 1
        if is_probe and self.is_open:
            self._open_s = min(2 * self._open_s, self._max_open_s)
            self.due_at = now + self._open_s
        elif self.due_at is None and self._lost >= LOST_TO_OPEN:
            self.due_at = now + self._open_s

    def gave_up(self, now: float, *, is_probe: bool) -> None:
        """A call was cancelled and says nothing; another may probe."""
        if is_probe and self.is_open:
            self.due_at = now


@dataclass(slots=True)
class Endpoint:
    """One server."""

    url: str
    limit: AdaptiveLimit
    breaker: Breaker
    waiting: deque[asyncio.Future[bool]]
    """Calls without a place, in order: True gives one its place, False tells it to choose again."""
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """The right to one call to a server."""

    endpoint: Endpoint
    sent_at: float
    is_probe: bool


@final
class Endpoints:
    """The servers of one model."""

    def __init__(
        self, urls: Sequence[str], *, max_in_flight: int, slow_s: float, max_open_s: float, max_down_s: float
    ) -> None:
        """`max_down_s`: how long calls wait while all servers are down."""
        self._endpoints = [
            Endpoint(
                url, AdaptiveLimit(max_in_flight, slow_s=slow_s), Breaker(max_open_s=max_open_s), deque()
            )
            for url in urls
        ]
        self._max_down_s = max_down_s
        self._down_since: float | None = None
        self._changed = asyncio.Event()
        """Set, and replaced, whenever a server goes down, stays down or comes back."""

    async def place(self, affinity: str) -> Place | None:
        """A place with the first server that is up, in this affinity's own order; None if all have been down too long.

        Calls of one affinity so share a server and its prefix cache; those of a server that is down go each to
        their next one, and return when it does.
        """
        order = self._order(affinity)
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            up = next((endpoint for endpoint in order if endpoint.breaker.allows(now)), None)
            if up is None:
                if not await self._some_change(now):
                    return None
            elif up.breaker.is_open:
                up.breaker.probe()
                up.in_flight += 1  # waits for no place: calls under way to a dead server may hold them all
                return Place(up, now, is_probe=True)
            elif await self._has_place(up):
                return Place(up, loop.time(), is_probe=False)

    def give_back(self, place: Place, answer: object) -> None:
        """What the call brought, a failure or whatever else; None if it was cancelled."""
        now = asyncio.get_running_loop().time()
        endpoint, breaker = place.endpoint, place.endpoint.breaker
        endpoint.in_flight -= 1
        before = breaker.due_at
        reason = answer.reason if isinstance(answer, Failure) else ""
        if answer is None:
            breaker.gave_up(now, is_probe=place.is_probe)
        elif reason in _LOST:
            breaker.lost(now, is_probe=place.is_probe)
        else:
            breaker.answered()
            self._down_since = None
        if reason in _OVERLOADED:
            endpoint.limit.overloaded(sent_at=place.sent_at, now=now)
        elif answer is not None and not reason:
            endpoint.limit.answered(sent_at=place.sent_at, now=now)
        if breaker.due_at != before:
            self._changed.set()
            self._changed = asyncio.Event()
        _serve(endpoint)

    def _order(self, affinity: str) -> Sequence[Endpoint]:
        """Rendezvous hashing: a server more or less moves its own share and nothing else."""
        if len(self._endpoints) == 1:
            return self._endpoints
        return sorted(self._endpoints, key=lambda e: hashlib.sha256(f"{e.url} {affinity}".encode()).digest())

    async def _has_place(self, endpoint: Endpoint) -> bool:
        """Wait for a place; False if the server went down first."""
        if endpoint.in_flight < endpoint.limit.value and not endpoint.waiting:
            endpoint.in_flight += 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        endpoint.waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                endpoint.in_flight -= 1
                _serve(endpoint)
            raise

    async def _some_change(self, now: float) -> bool:
        """All are down: wait for news or the next probe; False if that has gone on too long."""
        if self._down_since is None:
            self._down_since = now
        until = self._down_since + self._max_down_s
        if now >= until:
            return False
        due = min(e.breaker.due_at for e in self._endpoints if e.breaker.due_at is not None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(until, due) - now)
        return True


def _serve(endpoint: Endpoint) -> None:
    """Give free places to those that wait longest; all of them choose again where the server is down."""
    while endpoint.waiting and (endpoint.breaker.is_open or endpoint.in_flight < endpoint.limit.value):
        turn = endpoint.waiting.popleft()
        if not turn.done():
            turn.set_result(not endpoint.breaker.is_open)
            endpoint.in_flight += not endpoint.breaker.is_open
