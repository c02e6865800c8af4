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
MAX_OPEN_S = 15.0
"""Longest wait between two probes: a server that is back is noticed soon, and a refused call costs next to nothing."""
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


@dataclass(frozen=True, slots=True)
class _Turn:
    """A call without a place."""

    given: asyncio.Future[bool]
    """True gives it its place, False tells it to choose again."""
    alone: bool


@dataclass(slots=True)
class Endpoint:
    """One server."""

    url: str
    limit: AdaptiveLimit
    breaker: Breaker
    waiting: deque[_Turn]
    """In order; one that wants to be alone holds back those behind it until the server has nothing else to do."""
    in_flight: int = 0
    is_lonely: bool = False
    """Whether the one call in flight is to stay the only one."""

    def has_room(self, *, alone: bool) -> bool:
        """Whether one more call may go now."""
        most = 1 if alone else self.limit.value
        return self.in_flight < most and not self.is_lonely

    def enter(self, *, alone: bool) -> None:
        """One more call is in flight."""
        self.in_flight += 1
        self.is_lonely = alone


@dataclass(frozen=True, slots=True)
class Place:
    """The right to one call to a server."""

    endpoint: Endpoint
    sent_at: float
    is_probe: bool
    is_alone: bool = False
    """Whether no other call of this worker is at the server meanwhile."""


@final
class Endpoints:
    """The servers of one model."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        max_in_flight: int,
        slow_s: float,
        max_down_s: float,
        max_open_s: float = MAX_OPEN_S,
    ) -> None:
        """`max_down_s`: how long calls wait while all servers are down; a probe that is under way is waited for."""
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

    async def place(self, affinity: str, *, skip: int = 0, alone: bool = False) -> Place | None:
        """A place with the first server that is up, in this affinity's own order; None if all have been down too long.

        Calls of one affinity so share a server and its prefix cache; those of a server that is down go each to
        their next one, and return when it does. `skip`: servers of that order to try last, for a call that they
        answered badly. `alone`: wait until the server has nothing else to do, and keep the others away.
        """
        order = self._order(affinity)
        first = skip % len(order)
        order = [*order[first:], *order[:first]]
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
                return Place(up, now, is_probe=True, is_alone=up.in_flight == 1)
            elif await self._has_place(up, alone=alone):
                return Place(up, loop.time(), is_probe=False, is_alone=alone)

    def give_back(self, place: Place, answer: object) -> None:
        """What the call brought, a failure or whatever else; None if it was cancelled."""
        now = asyncio.get_running_loop().time()
        endpoint, breaker = place.endpoint, place.endpoint.breaker
        _leave(endpoint)
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

    async def _has_place(self, endpoint: Endpoint, *, alone: bool) -> bool:
        """Wait for a place; False if the server went down first."""
        if endpoint.has_room(alone=alone) and not endpoint.waiting:
            endpoint.enter(alone=alone)
            return True
        turn = _Turn(asyncio.get_running_loop().create_future(), alone)
        endpoint.waiting.append(turn)
        try:
            return await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled() and turn.given.result():
                _leave(endpoint)
            _serve(endpoint)  # it may have held back those behind it
            raise

    async def _some_change(self, now: float) -> bool:
        """All are down: wait for news or the next probe; False if that has gone on too long."""
        if self._down_since is None:
            self._down_since = now
        due = [e.breaker.due_at for e in self._endpoints if e.breaker.due_at is not None]
        is_probed = math.inf in due
        until = math.inf if is_probed else self._down_since + self._max_down_s
        if now >= until:
            return False
        wait_s = min(until, *due) - now
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if wait_s == math.inf else wait_s)
        return True


def _leave(endpoint: Endpoint) -> None:
    endpoint.in_flight -= 1
    endpoint.is_lonely = endpoint.is_lonely and endpoint.in_flight > 0


def _serve(endpoint: Endpoint) -> None:
    """Give free places to those that wait longest; all of them choose again where the server is down."""
    while endpoint.waiting:
        turn = endpoint.waiting[0]
        if turn.given.done():  # it gave up
            endpoint.waiting.popleft()
        elif endpoint.breaker.is_open:
            endpoint.waiting.popleft()
            turn.given.set_result(False)
        elif endpoint.has_room(alone=turn.alone):
            endpoint.waiting.popleft()
            endpoint.enter(alone=turn.alone)
            turn.given.set_result(True)
        else:
            return
