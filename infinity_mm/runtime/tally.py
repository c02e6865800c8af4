"""What the events of a run add up to at this moment: the one state behind terminal, JSON lines and metrics.

Event --Tally--> PassTally: units committed + under way --> samples done, fates, calls, cache hits, tokens a second, ETA
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from infinity_mm.runtime.events import (
    Event,
    PassCommitted,
    PassSkipped,
    PassStarted,
    UnitDone,
    UnitsUnderWay,
)
from infinity_mm.runtime.ledger import fate_counts

_RATE_S = 30.0
"""Speeds are those of the last so many seconds."""


@dataclass(kw_only=True)
class PassTally:
    """One pass as far as it has come."""

    name: str
    state: Literal["running", "committed", "committed before"]
    num_units: int = 0
    units_done: int = 0
    units_done_before: int = 0
    """Committed by an earlier call, which this one knows no more about."""
    num_inputs: int | None = None
    """Samples the pass will see, where that is known."""
    counts: Counter[str] = field(default_factory=Counter)
    """Of units committed and under way, kept up from report to report: adding all up each time would cost as much
    again for every worker."""
    under_way: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """Unit -> counts. A unit that another worker takes over starts again from nothing, and so do its counts here."""
    seconds: float = 0.0
    past: deque[tuple[float, float, float]] = field(default_factory=deque)
    """(seconds, samples done, tokens) of the last half minute."""

    @property
    def fates(self) -> dict[tuple[str, str], dict[str, int]]:
        """(stage, fate) -> reason -> number."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for stage, fate, reason, number in fate_counts(self.counts):
            found.setdefault((stage, fate), {})[reason] = int(number)
        return found

    @property
    def cached_share(self) -> float | None:
        """Share of prompt tokens that prefix caches had; None where no server said so. Scoring bypasses caches."""
        cached, prompts = (calls(self.counts, name) for name in ("cached_tokens", "prompt_tokens"))
        return cached / prompts if cached and prompts else None

    def rate(self, which: Literal["samples", "tokens"]) -> float:
        """A second, lately."""
        if len(self.past) < 2:
            return 0.0
        column = 1 if which == "samples" else 2
        first, last = self.past[0], self.past[-1]
        return max(0.0, (last[column] - first[column]) / max(last[0] - first[0], 1e-9))

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the present speed; None where total or speed is not known."""
        rate = self.rate("samples")
        if self.state != "running" or not self.num_inputs or rate <= 0:
            return None
        before = self.num_inputs * self.units_done_before / max(self.num_units, 1)
        return max(0.0, self.num_inputs - before - self.counts["in"]) / rate

    def to_plain(self) -> dict[str, Any]:
        """For JSON lines."""
        counts = self.counts
        ends: dict[str, dict[str, int]] = {"dropped": {}, "quarantined": {}}
        for (stage, fate), reasons in self.fates.items():
            if fate in ends:
                ends[fate] |= {f"{stage}/{reason}": number for reason, number in reasons.items()}
        return {
            "pass": self.name,
            "state": self.state,
            "units": self.num_units,
            "units_done": self.units_done,
            "samples": self.num_inputs,
            "samples_done": int(counts["in"]),
            "samples_out": int(counts["out"]),
            "pairs_kept": int(counts["pairs"]),
            **ends,
            **{name: calls(counts, name) for name in BY_STAGE},
            "cached_share": None if (share := self.cached_share) is None else round(share, 4),
            "tokens_now": int(counts["tokens_now"]),
            "tokens_per_s": round(self.rate("tokens"), 1),
            "eta_s": None if (eta := self.eta_s) is None else round(eta, 1),
            "seconds": round(self.seconds, 1),
        }


BY_STAGE = ("calls", "from_journal", "failed_calls", "prompt_tokens", "cached_tokens", "completion_tokens")


def calls(counts: Mapping[str, float], name: str) -> int:
    """The sum over stages of `calls.<stage>`, or of another name in `BY_STAGE`."""
    return int(sum(number for key, number in counts.items() if key.startswith(f"{name}.")))


@final
class Tally:
    """All passes so far, in order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = 0.0
        self.passes: dict[str, PassTally] = {}
        """Replaced, never changed in place, when a pass begins: other threads read it."""

    @property
    def now(self) -> PassTally | None:
        """The last pass that was begun."""
        return next(reversed(self.passes.values()), None)

    def __call__(self, event: Event) -> PassTally:
        """Take one event in and return the pass it is about."""
        match event:
            case PassSkipped(pass_name=name, totals=totals):
                tally = PassTally(name=name, state="committed before", counts=Counter(totals))
                self.passes = self.passes | {name: tally}
            case PassStarted(pass_name=name):
                tally = PassTally(
                    name=name,
                    state="running",
                    num_units=event.num_units,
                    units_done=event.num_done,
                    units_done_before=event.num_done,
                    num_inputs=event.num_inputs,
                )
                self.passes = self.passes | {name: tally}
                self._start = self._clock()
                self._note(tally)
            case UnitDone(pass_name=name, unit=unit):
                tally = self.passes[name]
                self._settle(tally, unit, event.counts, event.metrics)
                tally.under_way = {key: value for key, value in tally.under_way.items() if key != unit}
                tally.units_done += 1
                self._note(tally)
            case UnitsUnderWay(pass_name=name, counts=counts):
                tally = self.passes[name]
                for unit, now in counts.items():
                    self._settle(tally, unit, now)
                tally.under_way = {**tally.under_way, **counts}
                self._note(tally)
            case PassCommitted(pass_name=name, totals=totals, seconds=seconds):
                tally = self.passes[name]
                kept = {key: n for key, n in tally.counts.items() if key not in totals}
                tally.counts, tally.under_way = Counter(kept | dict(totals)), {}
                tally.state, tally.units_done, tally.seconds = "committed", tally.num_units, seconds
        return tally

    def tick(self) -> None:
        """Let the running pass's time go on where no event comes."""
        if self.now is not None and self.now.state == "running":
            self.now.seconds = self._clock() - self._start

    def _settle(self, tally: PassTally, unit: str, *now: Mapping[str, float]) -> None:
        """Count a unit as it is now instead of as it was."""
        counts = Counter(tally.counts)
        counts.subtract(tally.under_way.get(unit, {}))
        for each in now:
            counts.update(each)
        tally.counts = +counts  # a new one, because other threads read; without reasons that no longer hold

    def _note(self, tally: PassTally) -> None:
        self.tick()
        tally.past.append((tally.seconds, tally.counts["in"], tally.counts["tokens_now"]))
        while tally.past[0][0] < tally.seconds - _RATE_S and len(tally.past) > 2:
            tally.past.popleft()
