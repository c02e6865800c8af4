"""The line between one worker and the driver: counts go up about once a second, what it may spend comes down.

journeys <--counted when a report is due, never while working-- Link --Report--> driver
engines --Purse.reserve--> enough? --yes--> send --Purse.settle--> the rest is left for others
                              \\--no--> Report at once, wait for a Grant
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from infinity_mm.engines.base import Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.runtime.budget import LEASE_S, REPORT_S, Amount, Grant

Counter = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker tells the driver."""

    worker: str
    """Name of this open worker, never used again."""
    counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Unit -> what it has come to so far, from its start; only of units under way."""
    need: Amount
    """Without it nothing goes on."""
    wish: Amount
    """What would keep it going for a while."""
    spent: Amount | None
    """All it has spent since it was opened; None from one that died, of which nobody knows."""
    is_last: bool
    """The worker has closed, or died."""
    answer: Callable[[Grant], object] | None = None
    """Where the driver's grant goes; set by the executor."""


@final
class Link:
    """One worker's end of the line."""

    def __init__(self, *, image_tokens: int) -> None:
        """`image_tokens`: see `BudgetConfig`."""
        self._worker = secrets.token_hex(6)
        self._counters: dict[str, Counter] = {}
        self._urgent = asyncio.Event()
        self._closed = False
        self.purse = Purse(self._urgent.set, image_tokens=image_tokens)

    def watch(self, unit: str, count: Counter) -> None:
        """Have a unit's counts looked at whenever a report is due, until `forget`."""
        self._counters[unit] = count

    def forget(self, unit: str) -> None:
        """The unit is done; its last counts are committed with it."""
        self._counters.pop(unit, None)

    async def report(self) -> Report:
        """The next report: after a second, or at once if something cannot go on, or when the worker closes."""
        if not self._closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), REPORT_S)
        self._urgent.clear()
        need, wish = self.purse.wants()
        return Report(
            worker=self._worker,
            counts={unit: dict(count()) for unit, count in self._counters.items()},
            need=need,
            wish=wish,
            spent=self.purse.spent,
            is_last=self._closed,
        )

    def receive(self, grant: Grant) -> None:
        """Take what the driver lends."""
        self.purse.put(grant)

    def close(self) -> None:
        """Nothing more is counted or sent; the report that is due says so."""
        self._closed = True
        self._urgent.set()


@final
class Purse:
    """What this worker may still send; the `Allowance` of its engines."""

    def __init__(self, ask: Callable[[], None], *, image_tokens: int) -> None:
        """`ask` makes the next report due at once."""
        self._ask = ask
        self._image_tokens = image_tokens
        self._left = Amount()
        self._held = Amount()
        """Of requests under way."""
        self._lent = Amount()
        self._waiting: deque[tuple[Amount, asyncio.Future[None]]] = deque()
        self._is_last = False
        self._is_shut = False
        self._recent: deque[tuple[float, Amount]] = deque()
        self._recent_sum = Amount()

    @property
    def spent(self) -> Amount:
        """Requests under way included."""
        return self._lent - self._left

    async def reserve(self, requests: Sequence[Request | Scoring]) -> int:
        """Wait until the requests may be sent; returns how many of them, from the first.

        Fewer than all only when the budget is at its end, and none only when nothing is under way any more: so
        whoever is told to stop cuts off nobody's reply.
        """
        amounts = [self._most(request) for request in requests]
        whole = sum(amounts, start=Amount())
        while not self._is_shut:
            number = self._fitting(amounts)
            if number == len(amounts) or (number and self._is_last):
                taken = sum(amounts[:number], start=Amount())
                self._left, self._held = self._left - taken, self._held + taken
                self._note(taken)
                return number
            if self._is_last and self._held == Amount():
                self._is_shut = True
                self._wake()
                break
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((whole, news))
            if not self._is_last:
                self._ask()
            await news
        return 0

    def settle(self, request: Request | Scoring, answer: Reply | Likelihood | Failure) -> None:
        """Say what a request that was sent came to.

        One that was turned away (HTTP 4xx) cost no tokens; any other failure may have been computed before it was
        lost, so all that was set aside for it counts.
        """
        most = self._most(request)
        match answer:
            case Reply():
                tokens = answer.prompt_tokens + answer.completion_tokens or most.tokens
            case Likelihood():
                tokens = answer.prompt_tokens + answer.num_tokens
            case Failure():
                tokens = 0 if answer.reason.startswith("http_4") else most.tokens
        unused = Amount(tokens=most.tokens - tokens)
        self._left, self._held = self._left + unused, self._held - most
        self._wake()

    def put(self, grant: Grant) -> None:
        """Take a grant in."""
        self._left, self._lent = self._left + grant.amount, self._lent + grant.amount
        self._is_last = self._is_last or grant.is_last
        self._wake()

    def wants(self) -> tuple[Amount, Amount]:
        """(need, wish) for the next report."""
        waiting = sum((amount for amount, news in self._waiting if not news.cancelled()), start=Amount())
        need = (waiting - self._left).at_least(Amount())
        lately = self._lately()
        half = Amount(requests=lately.requests // 2, tokens=lately.tokens // 2)
        is_low = need != Amount() or not half.within(self._left)
        return need, lately if is_low else Amount()

    def _most(self, request: Request | Scoring) -> Amount:
        """One request and the most tokens it can take: a token of text is at least one byte of UTF-8."""
        text = sum(len(turn.text.encode("utf-8", "replace")) for turn in request.turns)
        images = self._image_tokens * len(request.images)
        template = 64 * len(request.turns)
        reply = request.max_new_tokens if isinstance(request, Request) else 1
        return Amount(requests=1, tokens=text + images + template + reply)

    def _fitting(self, amounts: Sequence[Amount]) -> int:
        whole = Amount()
        for number, amount in enumerate(amounts):
            whole += amount
            if not whole.within(self._left):
                return number
        return len(amounts)

    def _wake(self) -> None:
        """Everybody looks again, in the order in which they came."""
        waiting, self._waiting = self._waiting, deque()
        for _, news in waiting:
            if not news.done():
                news.set_result(None)

    def _note(self, taken: Amount) -> None:
        self._recent.append((time.monotonic(), taken))
        self._recent_sum += taken
        self._lately()

    def _lately(self) -> Amount:
        """What was taken in the last `LEASE_S` seconds."""
        since = time.monotonic() - LEASE_S
        while self._recent and self._recent[0][0] < since:
            self._recent_sum -= self._recent.popleft()[1]
        return self._recent_sum
