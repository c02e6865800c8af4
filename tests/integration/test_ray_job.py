"""`ray job submit` on a head node of its own: a submitted synthesis publishes, and submitted again asks nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_synth_determinism import ROOT, Teacher, check_ledger, outputs, published, settings

pytestmark = pytest.mark.integration

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes_of(folder: Path) -> list[int]:
    """Processes that were started for a Ray session: its folder is in their arguments or in their environment."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            is_dead = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            continue  # it has just ended
        if str(folder).encode() in told and not is_dead and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


@dataclass(frozen=True)
class Head:
    """A running head node."""

    dashboard: str
    env: dict[str, str]

    def submit(self, *overrides: str) -> tuple[int, str]:
        """The README's command: exit status and output."""
        script = [
            "pipelines/synth.py",
            "--config",
            "configs/synth/tiny.yaml",
            "--quiet",
            "--json",
            *overrides,
        ]
        command = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--"]
        done = subprocess.run(
            [*command, sys.executable, *script],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node with two cores, its own ports and folder; its processes are gone afterwards, whatever happened."""
    # Not under pytest's folder: the paths of Ray's sockets may have 107 characters.
    session = Path(f"/tmp/rayjob{os.getpid()}")
    port, dashboard = free_port(), free_port()
    keep = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env = keep | {"RAY_AUTH_MODE": "token", "HOME": str(session), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [RAY, "start", "--head", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={session}"]
    command += [f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
    try:
        session.mkdir()
        token = [RAY, "get-auth-token", "--generate"]  # into HOME, which goes with the session
        subprocess.run(token, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        started = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert started.returncode == 0, started.stdout + started.stderr
        yield Head(dashboard=f"http://127.0.0.1:{dashboard}", env=env)
    finally:
        # Not `ray stop`, which ends every Ray of this user.
        deadline = time.monotonic() + 20
        while (alive := processes_of(session)) and time.monotonic() < deadline:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        assert processes_of(session) == []
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="module")
def teacher() -> Iterator[Teacher]:
    with Teacher() as running:
        yield running


def test_a_submitted_job_publishes_and_the_same_command_again_makes_no_call(
    head: Head, teacher: Teacher, tmp_path: Path
) -> None:
    home = tmp_path / "run"
    command = settings(home, teacher, "executor.kind=ray", "executor.num_workers=1")
    status, text = head.submit(*command)
    assert status == 0, text
    summary = json.loads(next(line for line in text.splitlines() if line.startswith('{"name"')))
    assert summary["images_read"] == 18
    assert summary["published"] == [str(path) for path in home.glob("files/publish/*.parquet")]
    assert published(home).startswith(b"PAR1")
    check_ledger(home)
    before, num_asked = outputs(home), len(teacher.asked)
    status, text = head.submit(*command)
    assert status == 0, text
    assert len(teacher.asked) == num_asked
    assert outputs(home) == before


def test_a_relative_run_dir_is_refused_in_the_output_of_the_job_with_the_fix(
    head: Head, teacher: Teacher
) -> None:
    num_asked = len(teacher.asked)
    status, text = head.submit(*settings("runs/lost", teacher, "executor.kind=ray"))
    assert status == 1
    assert "run_dir is the relative path `runs/lost`, and this is a submitted Ray job" in text
    assert "fix:   give an absolute path on shared storage or a URL" in text
    assert "run_dir=/shared/runs/lost" in text
    assert len(teacher.asked) == num_asked
