"""The same toy run on real Ray: the same bytes whatever runs it and whatever is killed."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import ray
from ray.exceptions import ActorUnavailableError

TOYS = Path(__file__).parents[1] / "unit" / "runtime"
sys.path.insert(0, str(TOYS))
from toy_passes import Answers, Numbers, outputs  # noqa: E402 # pyright: ignore[reportMissingImports]

from infinity_mm.errors import BudgetSpentError, UserError  # noqa: E402
from infinity_mm.runtime import ray as ray_executor  # noqa: E402
from infinity_mm.runtime.budget import BudgetConfig  # noqa: E402
from infinity_mm.runtime.events import Event, UnitDone  # noqa: E402
from infinity_mm.runtime.local import LocalExecutor  # noqa: E402
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult  # noqa: E402
from infinity_mm.runtime.ray import RayExecutor  # noqa: E402
from infinity_mm.runtime.run import Run  # noqa: E402
from infinity_mm.runtime.runner import run_passes  # noqa: E402
from infinity_mm.runtime.work import Failed, PassWork  # noqa: E402
from infinity_mm.storage import manifest  # noqa: E402

pytestmark = pytest.mark.integration

UNITS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One Ray for all tests here; drivers in other processes find it by its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TOYS), str(Path(__file__).parent)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        context: Any = ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
        )
        patch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
        yield context.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the local executor puts out."""
    home = tmp_path_factory.mktemp("local")
    run_passes([Numbers(num_units=UNITS), Answers()], Run(str(home)), LocalExecutor())
    return outputs(home)


def started(log: Path) -> list[list[str]]:
    """Lines of the toy's log: unit, process, units in flight, OMP_NUM_THREADS."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split() for line in lines if line not in ("open", "close")]


@pytest.mark.parametrize("num_workers", [1, 4])
def test_ray_puts_out_the_same_bytes_as_one_process(
    cluster: str, expected: dict[str, str], tmp_path: Path, num_workers: int
) -> None:
    log = tmp_path / "log"
    passes = [Numbers(num_units=UNITS, log=str(log), seconds=0.3), Answers()]
    with RayExecutor(num_workers=num_workers) as executor:
        summary = run_passes(passes, Run(str(tmp_path / "run")), executor)
    assert outputs(tmp_path / "run") == expected
    assert [p.num_worked for p in summary.passes] == [UNITS, UNITS]
    processes = {process for _, process, *_ in started(log)}
    assert min(num_workers, 2) <= len(processes) <= num_workers
    # One that opened when the last units had been given out is closed as well.
    assert len(processes) <= log.read_text().split().count("close") <= num_workers
    assert max(in_flight for _, _, in_flight, _ in started(log)) == "2"
    assert ray.is_initialized()  # it was not started by the executor


def test_a_worker_may_use_the_cores_it_reserved(cluster: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with RayExecutor(num_workers=1, cpus_per_worker=3) as executor:
        run_passes([Numbers(log=str(log))], Run(str(tmp_path / "run")), executor)
    assert {threads for *_, threads in started(log)} == {"3"}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_worker_killed_from_outside_costs_only_the_units_it_had_open(
    cluster: str, expected: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    log = tmp_path / "log"
    draw = random.Random(seed)
    strike = draw.randrange(1, UNITS - 4)
    seen: list[str] = []

    def kill_one(event: Event) -> None:
        if isinstance(event, UnitDone):
            seen.append(event.unit)
            if len(seen) == strike:
                open_now = [line for line in started(log) if line[0] not in seen]
                os.kill(int(draw.choice(open_now)[1]), signal.SIGKILL)

    passes = [Numbers(num_units=UNITS, log=str(log), seconds=0.3), Answers()]
    with RayExecutor(num_workers=2) as executor:
        summary = run_passes(passes, Run(str(tmp_path / "run")), executor, kill_one)
    assert outputs(tmp_path / "run") == expected
    assert "A worker of pass numbers died" in caplog.text
    # Units that were handed over but had not begun when the worker died begin once; those under way begin twice.
    assert UNITS <= len(started(log)) <= UNITS + 2
    assert summary.passes[0].totals["out"] == sum(1 for key in Run(str(tmp_path / "run")).samples("numbers"))


def test_a_unit_that_kills_its_worker_once_is_worked_again(
    cluster: str, expected: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    Path(f"{log}.armed").touch()
    passes = [Numbers(num_units=UNITS, log=str(log), seconds=0.2, kill="00001"), Answers()]
    with RayExecutor(num_workers=4) as executor:
        run_passes(passes, Run(str(tmp_path / "run")), executor)
    assert outputs(tmp_path / "run") == expected
    begun = [unit for unit, *_ in started(log)]
    assert begun.index("00001", begun.index("00001") + 1) < begun.index(f"{UNITS - 1:05d}"), (
        "not put off to the end"
    )


def test_a_unit_that_kills_every_worker_is_named_and_its_neighbours_are_not_blamed(
    cluster: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    passes = [Numbers(num_units=UNITS, log=str(log), seconds=0.05, always_kill="00005")]
    run = Run(str(tmp_path / "run"))
    blame = "unit `00005` of pass `numbers` took 3 workers down with it"
    with pytest.raises(UserError, match=blame), RayExecutor(num_workers=2) as executor:
        run_passes(passes, run, executor)
    assert [unit for unit, *_ in started(log)].count("00005") == 3
    assert run.manifest("numbers") is None


def test_limits_of_time_hold_while_workers_wait_for_a_node(cluster: str, tmp_path: Path) -> None:
    budget = BudgetConfig(gpu_hours=2.5 / 3600)
    with pytest.raises(BudgetSpentError), RayExecutor(num_workers=1, cpus_per_worker=100) as executor:
        run_passes([Numbers()], Run(str(tmp_path / "run")), executor, budget=budget)


@pytest.mark.parametrize(("node_is_lost", "blamed"), [(True, []), (False, ["00000"])])
def test_a_unit_is_not_blamed_for_a_worker_that_was_lost_with_its_node(
    monkeypatch: pytest.MonkeyPatch, node_is_lost: bool, blamed: list[str]
) -> None:
    seen: list[bool] = []

    def nodes() -> list[dict[str, Any]]:
        """Ray sees it at the third look."""
        seen.append(not node_is_lost or len(seen) < 2)
        return [{"NodeID": "n", "Alive": seen[-1]}]

    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(ray_executor, "REPORT_S", 0.01)
    monkeypatch.setattr(ray_executor, "NODE_LOSS_S", 0.2)
    unit = Unit(id="00000", payload=None)
    work = PassWork(pass_=Answers(), run=Run("memory://unused"), generation="g")
    mapping = ray_executor._Mapping(RayExecutor(num_workers=1), work, [unit], max_attempts=1)
    worker = ray_executor._Worker(None, True, node="n", units=[unit], is_open=True)
    out = list(mapping._bury(worker, ActorUnavailableError("out of reach", None)))
    assert [one.unit for one in out if isinstance(one, Failed)] == blamed


@final
@dataclass(frozen=True, kw_only=True)
class Raises:
    """Raises in a worker: while opening, or in a unit, something that pickles or something that does not."""

    what: str
    name: str = "raises"

    def fingerprint(self) -> str:
        return self.what

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id="00000", payload=None)]

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[PassWorker]:
        if self.what == "open":
            raise UserError("no such model")
        yield self

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open()

    async def run(self, unit: Unit) -> UnitResult:
        if self.what == "unit":
            raise UserError("bad plan")
        raise KeywordOnly(code=7)


class KeywordOnly(Exception):  # noqa: N818
    """Cannot be unpickled."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("open", UserError, "no such model"),
        ("unit", UserError, "bad plan"),
        ("odd", RuntimeError, "KeywordOnly: code 7"),
    ],
)
def test_what_a_worker_raises_arrives_on_the_driver(
    cluster: str, tmp_path: Path, what: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught, RayExecutor(num_workers=1) as executor:
        run_passes([Raises(what=what)], Run(str(tmp_path)), executor)
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "in a Ray worker:" in text
    assert what == "open" or "while working unit 00000 of pass raises" in text


def test_a_pass_that_workers_cannot_import_is_refused_with_the_fix(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("class Pass:\n    name = 'far'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # pyright: ignore[reportMissingImports]

    work = PassWork(pass_=only_here.Pass(), run=Run(str(tmp_path)), generation="g")
    fault = r"cannot load pass `far`: .*No module named 'only_here'"
    with pytest.raises(UserError, match=fault), RayExecutor(num_workers=1) as executor:
        list(executor.map(work, [Unit(id="00000", payload=None)]))


@pytest.mark.parametrize("seed", range(4))
def test_a_driver_killed_anywhere_goes_on_with_the_same_command_to_the_same_bytes(
    cluster: str, expected: dict[str, str], tmp_path: Path, seed: int
) -> None:
    home, log = tmp_path / "run", tmp_path / "run.log"
    kind, workers = ("local", "1") if seed == 3 else ("ray", "2")
    command = [sys.executable, str(TOYS / "toy_passes.py"), str(home), kind, workers, "0.2"]
    draw = random.Random(seed)
    strike = draw.randrange(1, 2 * UNITS - 4)
    driver = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while len(started(log)) < strike and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.1))
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert len(started(log)) >= strike
    committed = {path.stem for path in home.glob("manifest/numbers/*/*.json")}
    committed |= {f"answers-{path.stem}" for path in home.glob("manifest/answers/*/*.json")}
    log.rename(tmp_path / "first.log")
    assert subprocess.run(command, timeout=300).returncode == 0
    assert outputs(home) == expected
    again = {line[0] for line in started(log)}
    assert not again & committed
    assert manifest.garbage(str(home)) == []


def test_an_executor_starts_a_private_ray_and_stops_it(tmp_path: Path) -> None:
    command = [sys.executable, str(TOYS / "toy_passes.py"), str(tmp_path / "run"), "ray", "1", "0"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
