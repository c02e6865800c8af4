"""A run directory on an object store: killed at chosen writes and resumed, it ends with the bytes of a local run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TOYS = HERE.parent / "unit" / "runtime"
sys.path[:0] = [str(HERE.parent / "loopback"), str(TOYS), str(HERE)]
from loopback_s3 import BUCKET, Hook, LoopbackS3  # noqa: E402 # pyright: ignore[reportMissingImports]
from test_synth_determinism import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    Teacher,
    configured,
    settings,
)
from test_synth_determinism import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    outputs as synthesis_outputs,
)
from toy_passes import Answers, Numbers, outputs  # noqa: E402 # pyright: ignore[reportMissingImports]

from infinity_mm.errors import UserError  # noqa: E402
from infinity_mm.publishing.run_bundle import run_bundle  # noqa: E402
from infinity_mm.report.run_report import ReportConfig, write_report  # noqa: E402
from infinity_mm.runtime.local import LocalExecutor  # noqa: E402
from infinity_mm.runtime.lock import run_lock  # noqa: E402
from infinity_mm.runtime.run import Run  # noqa: E402
from infinity_mm.runtime.runner import run_passes  # noqa: E402
from infinity_mm.storage import files, manifest  # noqa: E402
from infinity_mm.synth.run import run_synthesis  # noqa: E402

pytestmark = pytest.mark.integration

ROOT = HERE.parents[1]
NUM_UNITS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackS3]:
    with LoopbackS3() as running, pytest.MonkeyPatch.context() as patch:
        running.use(patch)
        yield running
        running.restart()


class Victim:
    """A driver in its own process, killed by the server at one of its writes."""

    def __init__(self, server: LoopbackS3, *command: str) -> None:
        self._server, self._command = server, [sys.executable, *command]

    def run(self, *, before: int = 0, after: int = 0) -> int:
        """Start it; kill it before or after its n-th write is done. Returns its exit status."""
        started = threading.Event()

        def killer(strike: int) -> Hook:
            def hook(number: int, method: str, path: str) -> str | None:
                if number < strike or not strike:
                    return None
                started.wait(60)
                if number == strike:
                    os.killpg(self.process.pid, signal.SIGKILL)
                return "refuse"  # what a dead process still has in flight does not count

            return hook

        def after_hook(number: int, method: str, path: str) -> str | None:
            if number == after:
                started.wait(60)
                os.killpg(self.process.pid, signal.SIGKILL)
            return None

        self._server.restart(before=killer(before), after=after_hook)
        self.process = subprocess.Popen(
            self._command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        started.set()
        _, errors = self.process.communicate(timeout=120)
        self._server.restart()
        if self.process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(errors.decode())
        return self.process.returncode


def lines(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_passes_killed_at_many_writes_go_on_to_the_bytes_of_a_local_run(
    server: LoopbackS3, tmp_path: Path
) -> None:
    home, log = f"s3://{BUCKET}/toy", tmp_path / "log"
    passes: list[Any] = [Numbers(num_units=NUM_UNITS), Answers()]
    run_passes(passes, Run(str(tmp_path / "local")), LocalExecutor())
    driver = Victim(server, str(TOYS / "toy_passes.py"), home, "local", "1", "0", str(NUM_UNITS), str(log))
    kills = [{"before": 1}, {"after": 3}, {"before": 9}, {"after": 10}, {"before": 12}]
    for strike in kills:
        done = {
            name: manifest_units(home, name, work)
            for name, work in (("numbers", ""), ("answers", "answers-"))
        }
        log.unlink(missing_ok=True)
        assert driver.run(**strike) == -signal.SIGKILL
        assert not set(lines(log)) & (done["numbers"] | done["answers"])
    assert driver.run() == 0
    assert outputs(home) == outputs(tmp_path / "local")
    assert manifest.garbage(home) == []
    assert files.names(f"{home}/lock") == []


def manifest_units(home: str, name: str, prefix: str) -> set[str]:
    """Units whose entries are there, as the log would call them."""
    folder = f"{home}/manifest/{name}"
    return {
        prefix + unit.removesuffix(".json")
        for generation in files.names(folder)
        if generation != "pass.json"
        for unit in files.names(f"{folder}/{generation}")
    }


def test_a_run_survives_a_store_that_fails_every_few_writes(server: LoopbackS3, tmp_path: Path) -> None:
    home = f"s3://{BUCKET}/faulty"
    passes: list[Any] = [Numbers(num_units=NUM_UNITS), Answers()]
    run_passes(passes, Run(str(tmp_path / "local")), LocalExecutor())
    server.restart(
        before=lambda number, *_: "refuse" if number % 11 == 3 else None,
        after=lambda number, *_: "lose" if number % 11 == 0 else None,
    )
    run_passes(passes, Run(home), LocalExecutor())
    server.restart()
    assert outputs(home) == outputs(tmp_path / "local")
    assert manifest.garbage(home) == []


def test_a_second_driver_is_refused_on_an_object_store(server: LoopbackS3) -> None:
    home = f"s3://{BUCKET}/two"
    with run_lock(f"{home}/lock"), pytest.raises(UserError, match=f"process {os.getpid()} on .* is working"):
        run_passes([Numbers(num_units=1)], Run(home), LocalExecutor())
    run_passes([Numbers(num_units=1)], Run(home), LocalExecutor())


def published(run_dir: str) -> dict[str, bytes]:
    """The data set's files by unit and name, without the random part of theirs."""
    folder = f"{run_dir}/files/publish"
    return {
        f"{name.split('.')[0]}/{name.split('.', 2)[2]}": files.read(f"{folder}/{name}")
        for name in files.names(folder)
    }


def test_a_synthesis_killed_three_times_publishes_what_a_local_replay_of_its_journal_does(
    server: LoopbackS3, tmp_path: Path
) -> None:
    home = f"s3://{BUCKET}/synthesis"
    sources = ("{kind: windtunnel, name: a, num_images: 4, world_seed: 1}",)
    with Teacher(delay_s=0.005) as teacher:
        command = [str(ROOT / "pipelines" / "synth.py"), "--config", str(ROOT / "configs/synth/tiny.yaml")]
        overrides = settings(home, teacher, "plan.questions_per_image=2", sources=sources)
        driver = Victim(server, *command, "--quiet", *overrides)
        for strike in ({"before": 12}, {"after": 30}, {"before": 40}):
            answered, mark = journaled(home, teacher, tmp_path), len(teacher.asked)
            assert driver.run(**strike) == -signal.SIGKILL
            assert not answered & set(teacher.asked[mark:])
        answered, mark = journaled(home, teacher, tmp_path), len(teacher.asked)
        assert answered
        assert driver.run() == 0
        assert not answered & set(teacher.asked[mark:])

        local = tmp_path / "replay"
        download(f"{home}/journal", local / "journal")
        num_asked = len(teacher.asked)
        run_synthesis(
            configured(local, teacher, "plan.questions_per_image=2", "journal=replay", sources=sources)
        )
        assert len(teacher.asked) == num_asked
    assert published(home) == published(str(local)) != {}
    assert synthesis_outputs(home) == synthesis_outputs(local)
    assert run_bundle(home, repo="me/x").digest != ""
    assert files.exists(write_report(home, ReportConfig(per_section=2)).path)


def download(url: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in files.names(url):
        (folder / name).write_bytes(files.read(f"{url}/{name}"))


def journaled(home: str, teacher: Teacher, tmp_path: Path) -> set[str]:
    download(f"{home}/journal", tmp_path / "copy" / "journal")
    return teacher.journaled(tmp_path / "copy")
