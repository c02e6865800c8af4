"""train/sft.py under accelerate launch: two processes compute what one computes."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What configs/accelerate/fsdp2.yaml makes accelerate's launcher set."""


def launch(
    out_dir: Path, num_processes: int, *overrides: str, extra_env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The documented command; several processes of one CPU machine are started by torchrun, as accelerate has no
    launcher for them but MPI's."""
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if num_processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    script = ["train/sft.py", "--config", "configs/train/tiny.yaml", f"out_dir={out_dir}", *overrides]
    return run([*launcher, *script], extra_env or {})


def run(arguments: Sequence[str], extra_env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **extra_env},
        capture_output=True,
        text=True,
        timeout=600,
    )


def losses(out_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.integration
def test_two_processes_compute_the_losses_of_one_and_resume_each_other(tmp_path: Path) -> None:
    one = launch(tmp_path / "one", 1)
    assert one.returncode == 0, one.stderr
    two = launch(tmp_path / "two", 2, "micro_batch_rows=1")
    assert two.returncode == 0, two.stderr
    assert "2 process(es)" in two.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()
    # A checkpoint of one process is finished by two.
    for name in ("checkpoint-6", "model"):
        (tmp_path / "one" / name).rename(tmp_path / f"away-{name}")
    again = launch(tmp_path / "one", 2)
    assert again.returncode == 0, again.stderr
    assert "resuming at step 3" in again.stdout
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)


@pytest.mark.integration
def test_a_rank_without_images_waits_for_nobody_and_gradients_are_those_of_one_process() -> None:
    script = str(ROOT / "tests/unit/training/uneven_images.py")
    both = run(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script], {})
    assert both.returncode == 0, both.stderr
    assert "find_unused_parameters" not in both.stderr
    lines = [line.split() for line in both.stdout.splitlines()]
    ways = ("ddp", "fsdp", "bf16", *(["zero3"] if find_spec("deepspeed") else []))
    differences = {line[0]: float(line[1]) for line in lines if line[0] in ways}
    assert differences == {way: pytest.approx(0, abs=1e-6) for way in ways}


@pytest.mark.integration
def test_a_sharded_run_computes_the_same_and_its_checkpoint_is_whole(tmp_path: Path) -> None:
    one = launch(tmp_path / "one", 1)
    assert one.returncode == 0, one.stderr
    two = launch(tmp_path / "two", 2, "micro_batch_rows=1", "save_in_background=true", extra_env=SHARDED)
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    for file in ("checkpoint-3/trainer/optimizer.safetensors", "model/model.safetensors"):
        wanted, found = (load_file(tmp_path / run / file) for run in ("one", "two"))
        assert found.keys() == wanted.keys()
        assert all((found[name] - wanted[name]).abs().max() < 1e-4 for name in wanted)
    # One process finishes what two sharded ones began, and the other way round.
    for run, processes, env in (("two", 1, {}), ("one", 2, SHARDED)):
        for name in ("checkpoint-6", "model"):
            (tmp_path / run / name).rename(tmp_path / f"away-{run}-{name}")
        again = launch(tmp_path / run, processes, extra_env=env)
        assert again.returncode == 0, again.stderr
        assert "resuming at step 3" in again.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.integration
def test_a_mistake_is_explained_without_a_traceback(tmp_path: Path) -> None:
    run = launch(tmp_path, 1, "learning_rate=1")
    assert run.returncode != 0
    assert "unknown key `learning_rate`" in run.stderr


@pytest.mark.integration
def test_two_killed_processes_go_on_with_the_same_samples_and_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    resume = importlib.import_module("resume")
    resume.finish(resume.launch(tmp_path / "whole", 2))
    row = resume.interrupted(tmp_path, resume.metrics(tmp_path / "whole"), (2, 2), 11)
    assert 8 <= row.resumed_at < 60
    assert row.same_samples
    assert row.loss_difference < 1e-6
