"""The commands of docs/tutorial.md, in order, on ten pictures and a stand-in server, made small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml
from photographs import put_photographs
from vlm_server import VlmServer

from infinity_mm.config import build
from infinity_mm.synth.config import SynthConfig

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("tutorial.md", "recipes.md", "running.md")
}
REAL = ("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct")

SMALL = {
    "doctor": "",
    "try": " --n 3 --questions 2 --no-open",
    "init": "",
    "synth": " plan.questions_per_image=2",
    "report": " --samples 4",
    "sft": " steps=2 save_every_steps=2 global_batch_rows=2 micro_batch_rows=1 num_workers=0 threads=1",
    "eval": " --images 2",
}
"""What is added to each command, in the order of the page, so that it takes seconds."""
LAUNCH = "accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGES["tutorial.md"], flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


class Place:
    """A folder that looks like a clone, with `photos` in it."""

    def __init__(self, folder: Path, server: VlmServer) -> None:
        self.folder, self.server = folder, server
        put_photographs(folder / "photos")
        for name in ("pipelines", "train", "configs", "infinity_mm"):
            (folder / name).symlink_to(ROOT / name)

    def small(self, command: str, more: str) -> str:
        for real, stand_in in zip(REAL, (self.server.url, "test/vlm-7b")):
            command = command.replace(real, stand_in)
        return command.replace("accelerate launch", LAUNCH).replace(" --images 40", "") + more


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with VlmServer(faults=False) as server:
        yield Place(tmp_path_factory.mktemp("tutorial"), server)


def test_every_command_of_the_tutorial_is_run_by_this_file() -> None:
    assert [word in command for word, command in zip(SMALL, commands(), strict=True)] == [True] * len(SMALL)


@pytest.mark.integration
@pytest.mark.parametrize("name", list(SMALL))
def test_a_command_of_the_tutorial_runs_after_those_before_it(name: str, place: Place) -> None:
    command = commands()[list(SMALL).index(name)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        ["bash", "-c", place.small(command, SMALL[name])],
        cwd=place.folder,
        env=environment
        | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    # What the doctor finds is this machine's business: 1 says that there is a problem.
    assert done.returncode in ((0, 1) if name == "doctor" else (0,)), done.stdout + done.stderr
    if name == "synth":
        assert list(place.folder.glob("runs/synth/files/publish/*.parquet"))
    if name == "sft":
        assert (place.folder / "runs" / "student" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_the_pages_name_exists(page: str) -> None:
    text = PAGES[page]
    named = re.findall(
        r"\b((?:configs|docs|pipelines|train|tests|infinity_mm)/[\w/-]+\.(?:py|yaml|md))", text
    )
    named += [f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)\)", text)]
    assert len(named) > 2
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_configuration_of_the_recipes_is_valid(tmp_path: Path) -> None:
    """Engines and executors load strictly, on top of the shipped file; Kubernetes' own YAML at least parses."""
    pages = PAGES["recipes.md"] + PAGES["running.md"]
    blocks = re.findall(r"```yaml\n(.*?)```", pages, flags=re.DOTALL)
    assert len(blocks) == 4
    shipped = yaml.safe_load((ROOT / "configs" / "synth" / "qwen2_5_vl.yaml").read_text(encoding="utf-8"))
    for block in blocks:
        data = yaml.safe_load(block)
        if "apiVersion" in data:
            assert data["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        else:
            assert build(SynthConfig, shipped | data).engines.teacher.spec()


def test_the_slurm_script_is_a_shell_script(tmp_path: Path) -> None:
    (script,) = re.findall(r"```\n(#!/bin/bash\n.*?)```", PAGES["running.md"], flags=re.DOTALL)
    (tmp_path / "job.sh").write_text(script, encoding="utf-8")
    done = subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
