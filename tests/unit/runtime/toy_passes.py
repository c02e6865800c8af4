"""A toy run: numbers in, some expanded, some dropped, some merged, one quarantined; a second pass doubles the rest.

As a script it makes the run in a directory, to be killed from outside:
`python toy_passes.py RUN_DIR local|ray NUM_WORKERS SECONDS_PER_UNIT [NUM_UNITS LOG]`
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from infinity_mm.record import Dropped, Emitted, Merged, Outcome, Quarantined, Sample, digest, settle
from infinity_mm.runtime.executors import ExecutorConfig, make_executor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import RunSummary, run_passes


@final
@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Units of consecutive numbers: 3 is quarantined, multiples of 5 are dropped, 7 goes into 8, 11 has children."""

    num_units: int = 4
    per_unit: int = 6
    salt: str = ""
    """Part of the fingerprint and of the output."""
    seconds: float = 0.0
    """How long a unit takes."""
    log: str = ""
    """File that gets a line for every unit worked."""
    kill: str = ""
    """Unit that kills its worker process, as long as the file `<log>.armed` exists, which it removes."""
    always_kill: str = ""
    """Unit that kills its worker process every time."""
    reverse: bool = False
    """Whether samples and fates come out in reverse order."""
    name: str = "numbers"

    def fingerprint(self) -> str:
        return digest(self.name, self.salt, str(self.num_units), str(self.per_unit))

    def units(self, run: Run) -> Sequence[Unit]:
        step = self.per_unit
        return [
            Unit(id=f"{n:05d}", payload=list(range(n * step, n * step + step))) for n in range(self.num_units)
        ]

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[PassWorker]:
        task = asyncio.current_task()
        note(self.log, "open")
        yield NumbersWorker(self)
        assert asyncio.current_task() is task  # what anyio and aiohttp ask for
        note(self.log, "close")

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open()


@final
class NumbersWorker:
    def __init__(self, config: Numbers) -> None:
        self.config = config
        self.in_flight = 0

    async def run(self, unit: Unit) -> UnitResult:
        config = self.config
        self.in_flight += 1
        note(config.log, f"{unit.id} {os.getpid()} {self.in_flight} {os.environ.get('OMP_NUM_THREADS')}")
        await asyncio.sleep(config.seconds)
        if unit.id == config.always_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        armed = Path(f"{config.log}.armed")
        if unit.id == config.kill and armed.exists():
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        self.in_flight -= 1
        numbers: list[int] = list(unit.payload)
        outcomes: list[Outcome] = []
        for number in numbers:
            sample = Sample(id=f"n{number:04d}", images=(), question=f"{number}?{config.salt}")
            if number == 3:
                outcomes.append(Quarantined(id=sample.id, stage="sieve", reason="odd", error="three"))
            elif number % 5 == 0:
                outcomes.append(Dropped(id=sample.id, stage="sieve", reason="five", sample=sample))
            elif number == 7:
                outcomes.append(Merged(id=sample.id, stage="sieve", into="n0008"))
            elif number == 11:
                for child in "ab":
                    id_ = f"{sample.id}{child}"
                    outcomes.append(Emitted(sample=replace(sample, id=id_, parents=(sample.id,))))
            else:
                outcomes.append(Emitted(sample=sample))
        ids = [f"n{number:04d}" for number in numbers]
        fates = settle("sieve", ids, outcomes)
        samples = [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]
        turn = -1 if config.reverse else 1
        return UnitResult(
            input_ids=ids[::turn],
            samples=samples[::turn],
            fates=fates[::turn],
            dropped=[
                {"id": o.id, "stage": o.stage, "reason": o.reason, "record": o.sample}
                for o in outcomes
                if isinstance(o, Dropped)
            ],
            quarantined=[
                {"id": o.id, "stage": o.stage, "reason": o.reason, "error": o.error}
                for o in outcomes
                if isinstance(o, Quarantined)
            ],
            metrics={"numbers": len(numbers)},
            files={"sum.txt": str(sum(numbers)).encode()},
        )


@final
@dataclass(frozen=True, kw_only=True)
class Answers:
    """Writes an answer to every sample of the pass before."""

    after: str = "numbers"
    salt: str = ""
    log: str = ""
    seconds: float = 0.0
    name: str = "answers"

    def fingerprint(self) -> str:
        return digest(self.name, self.salt)

    def units(self, run: Run) -> Sequence[Unit]:
        manifest = run.manifest(self.after)
        assert manifest is not None
        return [Unit(id=unit, payload=None) for unit in manifest.units]

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield AnswersWorker(self, run)

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open(run)


@final
class AnswersWorker:
    def __init__(self, config: Answers, run: Run) -> None:
        self.config, self.home = config, run

    async def run(self, unit: Unit) -> UnitResult:
        note(self.config.log, f"answers-{unit.id}")
        await asyncio.sleep(self.config.seconds)
        samples = self.home.unit_samples(self.config.after, unit.id)
        answered = [replace(sample, answer=f"{sample.question}{self.config.salt}!") for sample in samples]
        ids = [sample.id for sample in samples]
        fates = settle("answer", ids, [Emitted(sample=sample) for sample in answered])
        return UnitResult(input_ids=ids, samples=answered, fates=fates)


def note(log: str, line: str) -> None:
    """One write of a short line: whole even when several processes append."""
    if log:
        with open(log, "a") as file:
            file.write(line + "\n")


def outputs(run_dir: str | Path) -> dict[str, str]:
    """What a run put out, by pass, unit and kind: hashes of everything but metrics, which hold wall times."""
    run = Run(str(run_dir))
    found: dict[str, str] = {}
    for name in ("numbers", "answers"):
        committed = run.manifest(name)
        assert committed is not None
        from infinity_mm.storage.manifest import entries

        for entry in entries(run.run_dir, committed):
            for kind, stored in entry.objects.items():
                if kind != "metrics":
                    found[f"{name}/{entry.unit}/{kind}"] = stored.sha256
    return found


def main(
    run_dir: str, kind: str, num_workers: str, seconds: str, num_units: str = "12", log: str = ""
) -> RunSummary:
    log = log or f"{run_dir}.log"
    passes = [
        Numbers(num_units=int(num_units), seconds=float(seconds), log=log),
        Answers(seconds=float(seconds), log=log),
    ]
    config = ExecutorConfig(kind="ray" if kind == "ray" else "local", num_workers=int(num_workers))
    with make_executor(config) as executor:
        return run_passes(passes, Run(run_dir), executor)


if __name__ == "__main__":
    main(*sys.argv[1:])
