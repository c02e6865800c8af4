"""What a running pass tells: plain records, so that a terminal, a log file and a test can all listen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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
    num_inputs: int | None = None
    """Samples that the pass before put out; None for the first pass, which finds its own."""


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """A unit is committed."""

    pass_name: str
    unit: str
    counts: Mapping[str, int]
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UnitsUnderWay:
    """What a worker's open units have come to so far; about once a second."""

    pass_name: str
    worker: str
    counts: Mapping[str, Mapping[str, float]]
    """Unit -> counts since its start, under the names that `UnitDone` will use."""


@dataclass(frozen=True, kw_only=True)
class PassCommitted:
    """All units are committed and the sums agree."""

    pass_name: str
    totals: Mapping[str, int]
    seconds: float


Event = PassSkipped | PassStarted | UnitDone | UnitsUnderWay | PassCommitted
Listener = Callable[[Event], None]
