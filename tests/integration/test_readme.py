"""Every command of the README that a reader can run as it stands is run here, made small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALL = {
    "make demo": "infinity-mm demo --run-dir {tmp}/demo --images 8 --steps 2 --eval-images 4 --workers 1 --json",
    "make test": "python -m pytest --collect-only -q tests/unit/test_config.py",
    "python pipelines/synth.py --config configs/synth/windtunnel.yaml": (
        "python pipelines/synth.py --config configs/synth/windtunnel.yaml run_dir={tmp}/run"
        " 'read.sources=[{{kind: windtunnel, num_images: 6, world_seed: 1, split: held_out}}]'"
    ),
    "infinity-mm report runs/synth_windtunnel": "infinity-mm report {tmp}/run --samples 4",
    "accelerate launch train/sft.py --config configs/train/tiny.yaml": (
        "accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
        " train/sft.py --config configs/train/tiny.yaml out_dir={tmp}/tiny"
    ),
    "infinity-mm eval nano-teacher --task windtunnel --world-seed 1 --json": (
        "infinity-mm eval nano-teacher --task windtunnel --world-seed 1 --json --images 4"
    ),
    "infinity-mm windtunnel gallery": "infinity-mm windtunnel gallery --out {tmp}/gallery.html --per-family 2",
    "infinity-mm windtunnel teacher nano-teacher --json": (
        "infinity-mm windtunnel teacher nano-teacher --json --images 4"
    ),
}
"""README command -> what runs it small: other sizes and folders, nothing else."""


def commands() -> list[str]:
    """The lines of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s+", " ", line) for line in lines if line]


def test_every_command_of_the_readme_is_run_by_this_file() -> None:
    assert commands() == list(SMALL)


def test_every_path_that_the_readme_names_exists() -> None:
    named = re.findall(r"\b((?:configs|docs|pipelines|train|benchmarks|tests|infinity_mm)/[\w./-]*)", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_makefile_runs_what_the_small_commands_stand_for() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(BIN)/infinity-mm demo" in makefile
    assert "$(BIN)/python -m pytest" in makefile


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.integration
@pytest.mark.parametrize("command", list(SMALL))
def test_a_command_of_the_readme_runs(command: str, shared: Path) -> None:
    words = SMALL[command].format(tmp=shared)
    done = subprocess.run(
        ["bash", "-c", words],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "--json" in words:
        assert isinstance(json.loads(done.stdout), dict)
