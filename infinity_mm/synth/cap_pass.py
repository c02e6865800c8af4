"""Pass `cap`: of the pairs that were answered without the image, every instruction type keeps a share.

pairs.jsonl of `journeys`, all units --count by type--> how many may stay --first in id order--> who goes
conversations --without the exchanges of who goes--> conversations | dropped when none is left
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, final

from infinity_mm.record import (
    Dropped,
    Emitted,
    ImageSlot,
    Outcome,
    Sample,
    canonical_json,
    digest,
    settle,
)
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.synth.ids import is_source, num_source_turns
from infinity_mm.synth.journey_pass import read_pairs, set_aside

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

NAME = "cap"
REASON = "blind_over_cap"
CAPPED_FILE = "capped.json"
"""Committed beside the conversations: ids of the pairs that went."""


@final
@dataclass(frozen=True, kw_only=True)
class CapPass:
    """Between journeys and dedup, where the policy says `blind: cap`."""

    max_blind_share: float
    """Largest share of such pairs among those of a type."""
    after: str = "journeys"
    """The pass whose samples and pairs are read."""
    name: str = NAME

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
        capped = frozenset(unit.payload)
        samples = self._run.unit_samples(self._pass.after, unit.id)
        pairs = {pair.id: pair for pair in read_pairs(self._run, self._pass.after, unit.id)} if capped else {}
        outcomes = [_outcome(sample, capped, pairs) for sample in samples]
        ids = [sample.id for sample in samples]
        return UnitResult(
            input_ids=ids,
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=settle(self._pass.name, ids, outcomes),
            dropped=[set_aside(outcome) for outcome in outcomes if isinstance(outcome, Dropped)],
            metrics={"conversations": len(samples), "pairs_capped": len(capped)},
            files={CAPPED_FILE: canonical_json(sorted(capped)).encode()},
        )


def over_cap(
    blind: Mapping[str, Sequence[str]], seeing: Mapping[str, int], max_share: float
) -> Iterable[str]:
    """Ids that go: per type, all blind ones but the first in id order, as many as leave the share where it may be."""
    share = Fraction(str(max_share))  # as it is written: 0.1 is a tenth
    for type_, ids in blind.items():
        allowed = math.floor(share / (1 - share) * seeing.get(type_, 0))
        yield from sorted(ids)[allowed:]


def without(sample: Sample, gone: Collection[str], pairs: Mapping[str, Sample]) -> Sample | None:
    """The conversation without some of its pairs, the image before what is now first; None if nothing is left.

    Turns that came with the image stay, and stand first.
    """
    if not any(id_ in gone for id_ in sample.parents):
        return sample
    came_with = num_source_turns(sample)
    turns, asked = list(sample.turns[:came_with]), sample.turns[came_with:]
    pair_ids = [id_ for id_ in sample.parents if not is_source(id_)]
    slots = tuple(part for part in sample.turns[0].content if isinstance(part, ImageSlot))
    for id_, user, assistant in zip(pair_ids, asked[0::2], asked[1::2], strict=True):
        if id_ not in gone:
            said = tuple(part for part in user.content if not isinstance(part, ImageSlot))
            turns += [replace(user, content=said if turns else (*slots, *said)), assistant]
    if not turns:
        return None
    parents = tuple(id_ for id_ in sample.parents if id_ not in gone)
    calls = dict.fromkeys(call for id_ in pair_ids if id_ not in gone for call in pairs[id_].calls)
    return replace(sample, parents=parents, turns=tuple(turns), calls=tuple(calls))


def capped_ids(run: Run) -> frozenset[str]:
    """Pairs that the pass took out of a run's conversations; none where there was no such pass."""
    manifest = run.manifest(NAME)
    units = () if manifest is None else manifest.units
    return frozenset(id_ for unit in units for id_ in json.loads(run.read_file(NAME, unit, CAPPED_FILE)))


def _outcome(sample: Sample, capped: frozenset[str], pairs: Mapping[str, Sample]) -> Outcome:
    rest = without(sample, capped, pairs)
    if rest is None:
        return Dropped(id=sample.id, stage=NAME, reason=REASON, sample=sample)
    return Emitted(sample=rest)
