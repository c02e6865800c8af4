"""Pass `cap`: of the pairs that were answered without the image, every instruction type keeps a share.

pairs.jsonl of `journeys`, all units --count by type--> how many may stay --first in id order--> who goes
conversations --without the exchanges of who goes--> conversations | dropped when none is left
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, final

from infinity_mm.record import digest
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.synth.journey_pass import read_pairs
from infinity_mm.synth.outtake import take_out

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run


@final
@dataclass(frozen=True, kw_only=True)
class CapPass:
    """Between journeys and dedup, where the policy says `blind: cap`."""

    max_blind_share: float
    """Largest share of such pairs among those of a type."""
    after: str = "journeys"
    """The pass whose samples and pairs are read."""
    name: str = "cap"

    def fingerprint(self) -> str:
        """The share."""
        return digest(self.name, self.after, str(self.max_blind_share))

    def units(self, run: Run) -> Sequence[Unit]:
        """One unit per unit before; who goes is decided here, over all of them. Holds the ids of blind pairs alone."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        home: dict[str, str] = {}
        blind: dict[str, list[str]] = defaultdict(list)
        seeing: Counter[str] = Counter()
        for unit in manifest.units:
            for pair in read_pairs(run, self.after, unit):
                if pair.label("blind"):
                    blind[pair.instruction_type or ""].append(pair.id)
                    home[pair.id] = unit
                else:
                    seeing[pair.instruction_type or ""] += 1
        capped: dict[str, list[str]] = {unit: [] for unit in manifest.units}
        for id_ in over_cap(blind, seeing, self.max_blind_share):
            capped[home[id_]].append(id_)
        return [Unit(id=unit, payload=sorted(capped[unit])) for unit in manifest.units]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _CapWorker(self, run)


@final
class _CapWorker:
    def __init__(self, pass_: CapPass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        """Take the exchanges out."""
        return take_out(self._run, self._pass.name, self._pass.after, unit.id, unit.payload)


def over_cap(
    blind: Mapping[str, Sequence[str]], seeing: Mapping[str, int], max_share: float
) -> Iterable[str]:
    """Ids that go: per type, all blind ones but the first in id order, as many as leave the share where it may be."""
    share = Fraction(str(max_share))  # as it is written: 0.1 is a tenth
    for type_, ids in blind.items():
        allowed = math.floor(share / (1 - share) * seeing.get(type_, 0))
        yield from sorted(ids)[allowed:]
