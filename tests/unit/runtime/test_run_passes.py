from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import fsspec
import pytest
from toy_passes import Answers, Numbers, outputs

from infinity_mm.errors import BudgetSpentError, UserError
from infinity_mm.record import ConservationError
from infinity_mm.runtime import local
from infinity_mm.runtime.budget import BudgetConfig
from infinity_mm.runtime.events import Event, PassCommitted, PassSkipped, PassStarted, UnitDone
from infinity_mm.runtime.executors import Executor, ExecutorConfig, make_executor
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.runtime.work import Outcome, PassWork
from infinity_mm.storage import manifest


@final
class Shuffled:
    """The local executor, with the units in another order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        order = list(units)
        random.Random(self.seed).shuffle(order)
        return LocalExecutor().map(work, order)

    def __enter__(self) -> Shuffled:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@final
class Unused:
    """An executor that must not be asked."""

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        raise AssertionError("a committed pass was opened")

    def __enter__(self) -> Unused:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class PullThePlug(Exception):  # noqa: N818
    """Stands for a kill between two units."""


def work_some(passes: Sequence[Any], run: Run, num_units: int) -> None:
    """Run until that many units are done."""
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if sum(isinstance(event, UnitDone) for event in events) == num_units:
            raise PullThePlug

    with pytest.raises(PullThePlug):
        run_passes(passes, run, LocalExecutor(), stop)


def test_passes_run_in_order_and_report_totals(tmp_path: Path) -> None:
    events: list[Event] = []
    summary = run_passes([Numbers(), Answers()], Run(str(tmp_path)), LocalExecutor(), events.append)
    numbers, answers = summary.passes
    assert (numbers.totals["in"], numbers.totals["born"], numbers.totals["out"]) == (24, 2, 18)
    assert numbers.totals["fate/sieve/dropped/five"] == 5
    assert answers.totals["in"] == answers.totals["out"] == 18
    assert numbers.metrics["numbers"] == 24
    assert list(summary.phase_s) == ["numbers", "answers"]
    kinds = [type(event) for event in events]
    assert kinds == [PassStarted, *[UnitDone] * 4, PassCommitted] * 2


def test_a_committed_pass_is_skipped_without_opening_anything(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run_passes([Numbers(), Answers()], run, LocalExecutor())
    events: list[Event] = []
    summary = run_passes([Numbers(), Answers()], run, Unused(), events.append)
    assert [type(event) for event in events] == [PassSkipped, PassSkipped]
    assert [p.skipped for p in summary.passes] == [True, True]
    assert [p.num_worked for p in summary.passes] == [0, 0]
    assert summary.passes[0].totals["out"] == 18


def test_the_order_of_units_and_rows_does_not_show(tmp_path: Path) -> None:
    run_passes([Numbers(), Answers()], Run(str(tmp_path / "a")), LocalExecutor())
    for seed in range(3):
        home = tmp_path / f"b{seed}"
        run_passes([Numbers(reverse=True), Answers()], Run(str(home)), Shuffled(seed))
        assert outputs(home) == outputs(tmp_path / "a")


@pytest.mark.parametrize("num_units", range(1, 9))
def test_a_run_that_was_stopped_goes_on_and_redoes_nothing(tmp_path: Path, num_units: int) -> None:
    run_passes([Numbers(), Answers()], Run(str(tmp_path / "whole")), LocalExecutor())
    log = tmp_path / "log"
    run, passes = Run(str(tmp_path / "stopped")), [Numbers(log=str(log)), Answers(log=str(log))]
    work_some(passes, run, num_units)
    committed = {
        name: [unit for g in (tmp_path / "stopped/manifest" / name).glob("*/*.json") for unit in [g.stem]]
        for name in ("numbers", "answers")
    }
    assert sum(map(len, committed.values())) >= num_units
    log.write_text("")
    run_passes(passes, run, LocalExecutor())
    again = [line.split()[0] for line in log.read_text().splitlines()]
    assert not set(again) & {*committed["numbers"], *(f"answers-{unit}" for unit in committed["answers"])}
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")
    assert manifest.garbage(run.run_dir) == []


def test_a_run_that_dies_at_any_file_it_writes_or_removes_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = [Numbers(num_units=1), Answers()]
    run_passes(passes, Run(str(tmp_path / "whole")), LocalExecutor())
    steps_left = 0

    def mortal(step: Callable[..., Any]) -> Callable[..., Any]:
        def take(*args: Any, **options: Any) -> Any:
            nonlocal steps_left
            steps_left -= 1
            if steps_left < 0:
                raise PullThePlug  # and so does every later step, as of a process that is gone
            return step(*args, **options)

        return take

    for name in ("link", "replace", "unlink"):
        monkeypatch.setattr(os, name, mortal(getattr(os, name)))
    num_deaths = 0
    while True:
        run = Run(str(tmp_path / f"died{num_deaths}"))
        steps_left = num_deaths
        try:
            run_passes(passes, run, LocalExecutor())
        except PullThePlug:
            num_deaths += 1
        else:
            break
        steps_left = 10_000
        shutil.rmtree(run.path("lock"), ignore_errors=True)
        run_passes(passes, run, LocalExecutor())
        assert outputs(run.run_dir) == outputs(tmp_path / "whole")
    assert num_deaths > 15


def test_another_fingerprint_withdraws_and_recomputes_the_pass_and_all_later_ones(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "changed"))
    run_passes([Numbers(), Answers()], run, LocalExecutor())
    changed = [Numbers(salt="x"), Answers()]
    work_some(changed, run, 2)
    assert run.manifest("numbers") is None
    assert run.manifest("answers") is None
    summary = run_passes(changed, run, LocalExecutor())
    assert [p.skipped for p in summary.passes] == [False, False]
    run_passes(changed, Run(str(tmp_path / "fresh")), LocalExecutor())
    assert outputs(tmp_path / "changed") == outputs(tmp_path / "fresh")
    assert manifest.garbage(run.run_dir) == []


def test_another_fingerprint_of_a_later_pass_leaves_the_earlier_one(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run_passes([Numbers(), Answers()], run, LocalExecutor())
    summary = run_passes([Numbers(), Answers(salt="?")], run, LocalExecutor())
    assert [p.skipped for p in summary.passes] == [True, False]
    assert next(run.samples("answers")).answer == "1??!"


def test_units_of_an_interrupted_pass_that_is_now_cut_differently_do_not_count(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Cut:
        inner: Numbers
        name: str = "numbers"

        def fingerprint(self) -> str:
            return "same"

        def units(self, run: Run) -> Sequence[Unit]:
            return self.inner.units(run)

        def open(self, run: Run) -> Any:
            return self.inner.open(run)

    run = Run(str(tmp_path))
    work_some([Cut(inner=Numbers(num_units=4, per_unit=6))], run, 2)
    summary = run_passes([Cut(inner=Numbers(num_units=2, per_unit=12))], run, LocalExecutor())
    assert summary.passes[0].num_worked == 2
    assert manifest.garbage(run.run_dir) == []


@final
@dataclass(frozen=True, kw_only=True)
class Broken:
    """Fails as told, in the second of its units."""

    raises: str = ""
    name: str = "broken"

    def fingerprint(self) -> str:
        return ""

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id=f"{n:05d}", payload=None) for n in range(3)]

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[PassWorker]:
        if self.raises == "open":
            raise UserError("no such model")
        yield self

    def open(self, run: Run) -> Any:
        return self._open()

    async def run(self, unit: Unit) -> UnitResult:
        if self.raises == "run" and unit.id == "00001":
            raise RuntimeError("engine gone")
        lost = self.raises == "lose" and unit.id == "00001"
        return UnitResult(input_ids=[f"{unit.id}a"] if lost else [], samples=[], fates=[])


def test_what_a_unit_raises_is_raised_with_the_unit_named_and_the_rest_stays(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    with pytest.raises(RuntimeError, match="engine gone") as caught:
        run_passes([Broken(raises="run")], run, LocalExecutor())
    assert caught.value.__notes__ == ["while working unit 00001 of pass broken"]
    assert run.manifest("broken") is None
    assert list((tmp_path / "manifest/broken").glob("*/00000.json"))
    assert list((tmp_path / "lock").iterdir()) == []
    summary = run_passes([Broken()], run, LocalExecutor())
    assert summary.passes[0].num_units == 3


def test_what_opening_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        run_passes([Broken(raises="open")], Run(str(tmp_path)), LocalExecutor())


def test_a_unit_that_loses_a_sample_is_never_committed(tmp_path: Path) -> None:
    with pytest.raises(ConservationError, match="pass broken, unit 00001: came in and has no fate: 00001a"):
        run_passes([Broken(raises="lose")], Run(str(tmp_path)), LocalExecutor())
    assert not list((tmp_path / "manifest/broken").glob("*/00001.json"))


def test_a_pass_that_forgets_a_unit_of_the_one_before_is_never_committed(tmp_path: Path) -> None:
    @final
    class Forgetful:
        name = "answers"

        def fingerprint(self) -> str:
            return "forgetful"

        def units(self, run: Run) -> Sequence[Unit]:
            return Answers().units(run)[1:]

        def open(self, run: Run) -> Any:
            return Answers().open(run)

    run = Run(str(tmp_path))
    with pytest.raises(ConservationError, match="never taken in: n0001, n0002, n0004"):
        run_passes([Numbers(), Forgetful()], run, LocalExecutor())
    assert run.manifest("answers") is None
    assert run.manifest("numbers") is not None


def test_a_damaged_ledger_stops_the_run(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    work_some([Numbers(), Answers()], run, 4)
    ledger = next((tmp_path / "ledger/numbers").iterdir())
    ledger.write_bytes(ledger.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="other content"):
        run_passes([Numbers(), Answers()], run, LocalExecutor())


def test_names_must_differ_and_be_file_names(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    with pytest.raises(UserError, match="pass: `numbers` is there twice"):
        run_passes([Numbers(), Numbers()], run, LocalExecutor())
    with pytest.raises(UserError, match=r"pass `\.\./x` cannot be part of a file name"):
        run_passes([replace(Numbers(), name="../x")], run, LocalExecutor())


def test_two_units_are_in_flight(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_passes([Numbers(log=str(log), seconds=0.01)], Run(str(tmp_path / "run")), LocalExecutor())
    in_flight = [line.split()[2] for line in log.read_text().splitlines() if len(line.split()) > 2]
    assert max(in_flight) == "2"
    assert log.read_text().split()[0] == "open"
    assert log.read_text().split()[-1] == "close"


def test_a_pass_without_units_commits_nothing_and_is_committed(tmp_path: Path) -> None:
    summary = run_passes([Numbers(num_units=0), Answers()], Run(str(tmp_path)), Unused())
    assert [p.totals["out"] for p in summary.passes] == [0, 0]


@pytest.fixture
def object_store() -> Iterator[str]:
    yield "memory://runs/a"
    fsspec.filesystem("memory").rm("/runs", recursive=True)


def test_a_run_may_live_on_an_object_store_with_the_same_bytes(object_store: str, tmp_path: Path) -> None:
    work_some([Numbers(), Answers()], Run(object_store), 3)
    run_passes([Numbers(), Answers()], Run(object_store), LocalExecutor())
    run_passes([Numbers(), Answers()], Run(str(tmp_path)), LocalExecutor())
    assert outputs(object_store) == outputs(tmp_path)
    assert manifest.garbage(object_store) == []


def test_the_executor_is_configuration() -> None:
    assert isinstance(make_executor(ExecutorConfig()), LocalExecutor)
    assert isinstance(make_executor(ExecutorConfig(kind="ray", num_workers=2)), Executor)
    with pytest.raises(UserError, match="0 workers"):
        ExecutorConfig(num_workers=0)


def test_a_run_without_time_left_works_nothing_and_goes_on_with_more(tmp_path: Path) -> None:
    passes = [Numbers(log=str(tmp_path / "log")), Answers()]
    run = Run(str(tmp_path / "run"))
    with pytest.raises(BudgetSpentError, match=r"of 0\.0 GPU hours"):
        run_passes(passes, run, LocalExecutor(), budget=BudgetConfig(gpu_hours=0.0))
    assert not (tmp_path / "log").exists()
    run_passes(passes, run, LocalExecutor(), budget=BudgetConfig(gpu_hours=1.0))
    run_passes(passes, Run(str(tmp_path / "free")), LocalExecutor())
    assert outputs(tmp_path / "run") == outputs(tmp_path / "free")


@final
@dataclass(frozen=True, kw_only=True)
class NeverOpens:
    """A model that loads without end."""

    name: str = "stuck"

    def fingerprint(self) -> str:
        return ""

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id="00000", payload=None)]

    @asynccontextmanager
    async def open(self, run: Run) -> AsyncIterator[PassWorker]:
        await asyncio.Event().wait()
        raise AssertionError
        yield


def test_limits_of_time_hold_while_a_worker_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "REPORT_S", 0.01)
    budget = BudgetConfig(gpu_hours=1.05 / 3600)  # it stops one second early
    with pytest.raises(BudgetSpentError):
        run_passes([NeverOpens()], Run(str(tmp_path)), LocalExecutor(), budget=budget)


def test_an_executor_without_attempts_is_refused() -> None:
    with pytest.raises(UserError, match="max_attempts to at least 1"):
        ExecutorConfig(max_attempts=0)
