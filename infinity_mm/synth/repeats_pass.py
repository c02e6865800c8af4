"""Pass `repeats`: a question that is asked of many images is numbered, and beyond the policy's limit taken out.

conversations of `dedup`, pairs of `journeys`, all units --use_numbers--> question -> 1, 2, 3, ... in id order
                          --label `repeat`, more than policy.max_repeats taken out--> conversations

Within one image the stage `distinct` has seen to it. The styles of a question are one use of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from infinity_mm.dedup.counting import use_numbers
from infinity_mm.record import Sample, canonical_json, digest
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.synth.choice import stem
from infinity_mm.synth.journey_pass import read_pairs
from infinity_mm.synth.outtake import take_out

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

NAME = "repeats"
LABEL = "repeat"
"""The how-manieth use of its question a pair is."""
_NUMBERS_FILE = "repeats.json"
"""Committed beside the conversations: question id -> its number, where that is not 1."""


@final
@dataclass(frozen=True, kw_only=True)
class RepeatsPass:
    """Between dedup and publish, where `dedup.count_questions` or `policy.max_repeats` asks for it."""

    max_repeats: int | None
    """Uses of a question that stay, the first in id order; null: all, and they are only numbered."""
    after: str = "dedup"
    """The pass whose conversations are read."""
    name: str = NAME

    def fingerprint(self) -> str:
        """The limit."""
        return digest(self.name, self.after, str(self.max_repeats))

    def units(self, run: Run) -> Sequence[Unit]:
        """One unit per unit before, with the numbers above 1; memory as in `use_numbers`, plus these."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        sizes: list[int] = []

        def listed() -> Iterator[tuple[str, str]]:
            for unit in manifest.units:
                found = questions(run, self.after, unit)
                sizes.append(len(found))
                yield from found.items()

        numbers = use_numbers(listed())
        units: list[Unit] = []
        start = 0
        for unit, size in zip(manifest.units, sizes, strict=True):
            units.append(Unit(id=unit, payload=numbers[start : start + size].tolist()))
            start += size
        return units

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _RepeatsWorker(self, run)


@final
class _RepeatsWorker:
    def __init__(self, pass_: RepeatsPass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        """Write the numbers down, and take out the pairs of questions beyond the limit."""
        asked = questions(self._run, self._pass.after, unit.id)
        numbers = dict(zip(asked, unit.payload, strict=True))
        limit = self._pass.max_repeats
        over = {id_ for id_, number in numbers.items() if limit is not None and number > limit}
        gone = [
            id_
            for sample in (self._run.unit_samples(self._pass.after, unit.id) if over else ())
            for id_ in sample.parents
            if _question_id(id_) in over
        ]
        result = take_out(self._run, self._pass.name, self._pass.after, unit.id, gone)
        repeated = {id_: number for id_, number in numbers.items() if number > 1}
        return replace(
            result,
            metrics={
                **result.metrics,
                "questions": len(numbers),
                "questions_repeated": len(repeated),
                "questions_over": len(over),
            },
            files={**result.files, _NUMBERS_FILE: canonical_json(repeated).encode()},
        )


def questions(run: Run, after: str, unit: str) -> dict[str, str]:
    """Question id -> question, for every question that a conversation of the unit still holds, in id order."""
    alive = {id_ for sample in run.unit_samples(after, unit) for id_ in sample.parents}
    pairs = (pair for pair in read_pairs(run, "journeys", unit) if pair.id in alive)
    return dict(sorted((_question_id(pair.id), stem(pair)) for pair in pairs))


def with_repeats(run: Run, unit: str, pairs: Sequence[Sample]) -> list[Sample]:
    """The pairs of a unit with their label."""
    repeated: Mapping[str, int] = json.loads(run.read_file(NAME, unit, _NUMBERS_FILE))
    return [pair.with_label(LABEL, float(repeated.get(_question_id(pair.id), 1))) for pair in pairs]


def _question_id(pair_id: str) -> str:
    return pair_id.rpartition(".")[0]
