"""A finished run made in a moment: drawn squares, one question each, some dropped, published by the real pass."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import final

from PIL import Image

from infinity_mm.record import (
    Call,
    Dropped,
    Emitted,
    ImageRef,
    ImageSlot,
    Outcome,
    Sample,
    Score,
    Text,
    Turn,
    digest,
    settle,
)
from infinity_mm.runtime.ledger import fate_counts
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.storage import files
from infinity_mm.storage.shards import jsonl_bytes
from infinity_mm.synth.journey_pass import PAIRS_FILE
from infinity_mm.synth.publish_pass import PublishConfig, PublishPass

LICENCES = ("CC0-1.0", "CC-BY-4.0", "unknown")


@final
@dataclass(frozen=True, kw_only=True)
class Squares:
    """Two squares a unit; every fifth is dropped."""

    num_units: int
    name: str = "journeys"

    def fingerprint(self) -> str:
        return digest(self.name, str(self.num_units))

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id=f"{n:05d}", payload=[2 * n, 2 * n + 1]) for n in range(self.num_units)]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _Worker(run)


@final
class _Worker:
    def __init__(self, run: Run) -> None:
        self._run = run

    async def run(self, unit: Unit) -> UnitResult:
        pairs = [_pair(self._run, number) for number in unit.payload]
        outcomes: list[Outcome] = [
            Dropped(id=pair.id, stage="decide", reason="low_score", sample=pair)
            if number % 5 == 4
            else Emitted(sample=_conversation(pair))
            for number, pair in zip(unit.payload, pairs)
        ]
        ids = [pair.id for pair in pairs]
        dropped = [outcome for outcome in outcomes if isinstance(outcome, Dropped)]
        return UnitResult(
            input_ids=ids,
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=settle("decide", ids, outcomes),
            dropped=[{"id": o.id, "stage": o.stage, "reason": o.reason, "sample": o.sample} for o in dropped],
            files={PAIRS_FILE: jsonl_bytes([{"id": pair.id, "sample": pair} for pair in pairs])},
        )


def _pair(run: Run, number: int) -> Sample:
    picture = Image.new("RGB", (64 + number, 48), (37 * number % 256, 200, 90))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = buffer.getvalue()
    image = ImageRef(
        sha256=hashlib.sha256(data).hexdigest(),
        uri=run.store_image(data),
        width=picture.width,
        height=picture.height,
        source="squares",
        licence=LICENCES[number % 3],
    )
    return Sample(
        id=f"pair{number:04d}",
        images=(image,),
        instruction_type="colour",
        style="short",
        question=f"What | is <b>number</b> {number}?",
        answer=f"It is square {number}.",
        score=Score(overall=9),
        calls=(
            Call(stage="answer", model="toy@1", prompt="toy/answer@abc", key="k", temperature=0.0, seed=1),
            Call(stage="judge", model="toy@1", prompt="toy/judge@def", key="k", temperature=0.0, seed=1),
        ),
    )


def _conversation(pair: Sample) -> Sample:
    return Sample(
        id=f"c{pair.id}",
        images=pair.images,
        parents=(pair.id,),
        turns=(
            Turn("user", (ImageSlot(0), Text(pair.question or ""))),
            Turn("assistant", (Text(pair.answer or ""),)),
        ),
    )


def make_run(run_dir: str, *, num_units: int = 4) -> Run:
    """Two rows a unit and a file, less what is dropped."""
    run = Run(run_dir)
    run.start({"stages": ["answer", "judge", "decide"], "policy": {"keep_at": 8}}, seed=7)
    publish = PublishPass(config=PublishConfig(rows_per_file=1), after="journeys")
    run_passes([Squares(num_units=num_units), publish], run, LocalExecutor())
    fates: dict[str, dict[str, int]] = {}
    dropped: dict[str, dict[str, int]] = {}
    for name in ("journeys", "publish"):
        committed = run.manifest(name)
        assert committed is not None
        for stage, fate, reason, number in fate_counts(committed.totals):
            fates.setdefault(stage, {})[fate] = number
            if fate == "dropped":
                dropped.setdefault(stage, {})[reason] = number
    files.write(run.path("summary.json"), json.dumps({"fates": fates, "dropped": dropped}).encode())
    return run
