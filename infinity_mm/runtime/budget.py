"""Hard limits on what a run may spend, kept by the driver: workers spend what it lent them before.

    worker --Report: needs 3 requests--> Bank --spent.json written, then lent--> Grant --> worker sends

What is lent counts as spent until the worker accounts for it. So no number of workers together can pass a limit, and
a kill can only make the account too high, never too low.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from infinity_mm.errors import BudgetSpentError, explain
from infinity_mm.storage import files

REPORT_S = 1.0
"""Seconds between two reports of a worker that needs nothing."""
LEASE_S = 10.0
"""A worker is lent what it spends in about so many seconds; the account on disk is written at least as often."""
SPENT_FILE = "spent.json"


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Limits of a run over all its calls, resent requests and interrupted calls of the command included.

    None of it changes the output: a run that stopped at a limit goes on to the same end with a higher one.
    """

    requests: int | None = None
    """Most requests sent to models; a retry is a request."""
    tokens: int | None = None
    """Most tokens, of prompts and replies. Before a request is sent its largest possible number is set aside."""
    gpu_hours: float | None = None
    """Most hours of `gpus` GPUs while the run is worked on."""
    gpus: float = 1.0
    """How many GPUs the run keeps busy, those of its model servers included."""
    image_tokens: int = 16384
    """Most prompt tokens one image can take; set aside until the reply says how many it was."""

    def __post_init__(self) -> None:
        limits = (self.requests, self.tokens, self.gpu_hours)
        if (
            any(limit is not None and limit < 0 for limit in limits)
            or self.gpus <= 0
            or self.image_tokens < 0
        ):
            raise explain(
                what=f"budget of {self.requests} requests, {self.tokens} tokens, {self.gpu_hours} GPU hours of "
                f"{self.gpus} GPUs, {self.image_tokens} tokens an image",
                where="budget (configuration)",
                fix="leave a limit out for none, else give 0 or more; gpus must be above 0",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """Requests and tokens, which are lent and spent together."""

    requests: int = 0
    tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(requests=self.requests + other.requests, tokens=self.tokens + other.tokens)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(requests=self.requests - other.requests, tokens=self.tokens - other.tokens)

    def within(self, other: Amount) -> bool:
        """Whether `other` is enough for it."""
        return self.requests <= other.requests and self.tokens <= other.tokens

    def at_most(self, other: Amount) -> Amount:
        """The smaller of each, and never less than nothing."""
        return Amount(
            requests=max(0, min(self.requests, other.requests)), tokens=max(0, min(self.tokens, other.tokens))
        )

    def at_least(self, other: Amount) -> Amount:
        """The larger of each."""
        return Amount(requests=max(self.requests, other.requests), tokens=max(self.tokens, other.tokens))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What the driver lends."""

    amount: Amount
    is_last: bool
    """There is no more to come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What a run has spent so far."""

    requests: int = 0
    tokens: int = 0
    gpu_seconds: float = 0.0


_UNLIMITED = 2**62


@final
class Bank:
    """The account of one run, from the first to the last pass of this call."""

    def __init__(
        self, config: BudgetConfig, run_dir: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Goes on from what earlier calls have written down."""
        self.config = config
        self._url = files.join(run_dir, SPENT_FILE)
        self._before = read_account(run_dir)
        self._lent: dict[str, Amount] = {}
        """By worker: all it was ever lent; once it has closed, what it spent."""
        self._open: set[str] = set()
        self._clock = clock
        self._start = clock()
        self._written_to = 0.0
        """GPU seconds that the account on disk covers."""
        self._written = Amount()
        """What it covers besides."""

    def lend(self, worker: str, *, need: Amount, wish: Amount) -> Grant:
        """As much of the wish as is fair, and the need if there is enough; on disk before it is lent."""
        self._open.add(worker)
        free = self._limits() - self._total()
        fair = Amount(
            requests=free.requests // (2 * len(self._open)), tokens=free.tokens // (2 * len(self._open))
        )
        amount = need.at_least((need + wish).at_most(fair)).at_most(free)
        if amount != Amount():
            self._lent[worker] = self._lent.get(worker, Amount()) + amount
            if not self._total().within(self._written):
                self._write(lending=amount)
        return Grant(amount=amount, is_last=not need.within(free))

    def close_worker(self, worker: str, *, spent: Amount | None) -> None:
        """Take back what a worker that has ended did not spend; nothing of one that died."""
        self._open.discard(worker)
        if spent is not None:
            self._lent[worker] = spent

    def check_time(self) -> None:
        """Raise at the limit of GPU hours, one report early rather than late; else keep the account on disk ahead."""
        used = self._gpu_seconds()
        limit = self.config.gpu_hours
        if limit is not None and used + REPORT_S * self.config.gpus >= 3600 * limit:
            raise self.spent_error()
        if used >= self._written_to:
            self._write()

    def spent_error(self) -> BudgetSpentError:
        """What the user is told; says which limits there are and what was spent."""
        account = self.account()
        shown = [
            f"{account.requests:,} of {_shown(self.config.requests)} requests",
            f"{account.tokens:,} of {_shown(self.config.tokens)} tokens",
            f"{account.gpu_seconds / 3600:.3f} of {_shown(self.config.gpu_hours)} GPU hours",
        ]
        return BudgetSpentError(
            str(
                explain(
                    what="the budget does not allow the next request: " + ", ".join(shown),
                    where="budget (configuration)",
                    fix="raise the limit and run the same command again: it goes on where it stopped",
                )
            )
        )

    def account(self) -> Account:
        """What was spent, with what is lent."""
        total = self._total()
        return Account(requests=total.requests, tokens=total.tokens, gpu_seconds=self._gpu_seconds())

    def close(self) -> None:
        """Write what was really spent."""
        self._write(ahead=False)

    def _total(self) -> Amount:
        start = Amount(requests=self._before.requests, tokens=self._before.tokens)
        return sum(self._lent.values(), start=start)

    def _limits(self) -> Amount:
        requests, tokens = self.config.requests, self.config.tokens
        return Amount(
            requests=_UNLIMITED if requests is None else requests,
            tokens=_UNLIMITED if tokens is None else tokens,
        )

    def _gpu_seconds(self) -> float:
        return self._before.gpu_seconds + (self._clock() - self._start) * self.config.gpus

    def _write(self, *, ahead: bool = True, lending: Amount | None = None) -> None:
        account = self.account()
        self._written_to = account.gpu_seconds + (LEASE_S * self.config.gpus if ahead else 0.0)
        self._written = Amount(requests=account.requests, tokens=account.tokens)
        if lending is not None and self.config.requests is None and self.config.tokens is None:
            # No limit is near: one write covers the next lease of every worker, not a write and a sync for each.
            for _ in self._open:
                self._written += lending
        plain = {
            "requests": self._written.requests,
            "tokens": self._written.tokens,
            "gpu_seconds": round(self._written_to, 3),
        }
        files.write(self._url, json.dumps(plain).encode())


def read_account(run_dir: str) -> Account:
    """What a run has spent, as last written down; nothing for a run that has not begun."""
    try:
        return Account(**json.loads(files.read(files.join(run_dir, SPENT_FILE))))
    except FileNotFoundError:
        return Account()


def _shown(limit: float | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"
