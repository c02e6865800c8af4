"""What a running pass tells: plain records, so that a terminal, a log file and a test can all listen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PassSkipped:
    """A pass was committed before with the same fingerprint; nothing is opened."""

    pass_name: str
    totals: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class PassStarted:
    """A pass begins."""

    pass_name: str
    num_units: int
    num_done: int
    """Units that an earlier call committed."""


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """A unit is committed."""

    pass_name: str
    unit: str
    counts: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PassCommitted:
    """All units are committed and the sums agree."""

    pass_name: str
    totals: Mapping[str, int]
    seconds: float


Event = PassSkipped | PassStarted | UnitDone | PassCommitted
Listener = Callable[[Event], None]
