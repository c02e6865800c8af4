"""train/sft.py under accelerate launch: two processes compute what one computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(out_dir: Path, num_processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The documented command; several processes of one CPU machine are started by torchrun, as accelerate has no
    launcher for them but MPI's."""
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if num_processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    script = ["train/sft.py", "--config", "configs/train/tiny.yaml", f"out_dir={out_dir}", *overrides]
    return subprocess.run(
        [sys.executable, *launcher, *script],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
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
def test_a_mistake_is_explained_without_a_traceback(tmp_path: Path) -> None:
    run = launch(tmp_path, 1, "learning_rate=1")
    assert run.returncode != 0
    assert "unknown key `learning_rate`" in run.stderr
