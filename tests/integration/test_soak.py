"""A short soak: a kill, a disk that is full as a checkpoint is written, broken images, and steps of NaN."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
def test_a_run_with_everything_going_wrong_ends_and_accounts_for_every_sample() -> None:
    command = [sys.executable, "benchmarks/soak.py", "--steps", "150", "--lives", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills, 1 times without disk space" in done.stdout
    assert done.stdout.count(": yes") == 7
