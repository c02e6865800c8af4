"""DeepSpeed's ZeRO-3 on two CPU processes computes what whole copies of the model compute."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

pytest.importorskip("deepspeed", reason="pip install 'infinity-mm[deepspeed]'")

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "unit" / "families"), str(ROOT / "tests" / "unit" / "training")]

from tiny_families import write_checkpoint, write_three  # noqa: E402 # pyright: ignore[reportMissingImports]
from toy_run import tiny_config  # noqa: E402 # pyright: ignore[reportMissingImports]

from infinity_mm.training.sft import train  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What zero3_runs.py leaves behind."""
    folder = tmp_path_factory.mktemp("zero3")
    write_checkpoint("qwen3_vl", folder / "start")
    write_three(folder)
    script = ROOT / "tests" / "unit" / "training" / "zero3_runs.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def column(run: Path, key: str) -> list[float]:
    return [line[key] for line in metrics(run)]


def largest_difference(one: Path, other: Path) -> float:
    """Between tensors that have the same names, shapes and types."""
    a, b = load_file(one), load_file(other)
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}

    def difference(x: Tensor, y: Tensor) -> float:
        return float((x - y).abs().max())

    return max(difference(a[name], b[name]) for name in a)


def test_the_record_of_a_run_tells_the_ways_apart(runs: Path) -> None:
    for run in ("plain", "spikes", "adapters", "stock"):
        versions = {
            way: json.loads((runs / run / way / "run.json").read_text())["versions"]
            for way in ("ddp", "zero3")
        }
        assert {way: "deepspeed" in versions[way] for way in versions} == {"ddp": False, "zero3": True}


def test_losses_norms_and_checkpoints_are_those_of_whole_copies(runs: Path) -> None:
    ddp, zero3 = runs / "plain" / "ddp", runs / "plain" / "zero3"
    assert len(metrics(zero3)) == 6
    assert column(zero3, "loss") == pytest.approx(column(ddp, "loss"), abs=1e-5)
    assert column(zero3, "grad_norm") == pytest.approx(column(ddp, "grad_norm"), rel=1e-5)
    assert min(column(zero3, "grad_norm")) > 0.5  # so that all were clipped
    state = "checkpoint-4/trainer/optimizer.safetensors"
    for file in ("checkpoint-4/model.safetensors", state, "model/model.safetensors"):
        assert largest_difference(ddp / file, zero3 / file) < 1e-5
    AutoModelForImageTextToText.from_pretrained(zero3 / "model")


def test_a_resumed_run_is_the_same_run(runs: Path) -> None:
    whole, resumed = runs / "plain" / "zero3", runs / "resumed" / "zero3"
    assert column(resumed, "loss") == column(whole, "loss")
    assert (
        largest_difference(whole / "model" / "model.safetensors", resumed / "model" / "model.safetensors")
        == 0
    )


def test_one_process_finishes_what_two_began(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "plain" / "zero3", tmp_path / "alone")
    for made_later in ("checkpoint-6", "model"):
        shutil.rmtree(tmp_path / "alone" / made_later)
    train(tiny_config(tmp_path / "alone", global_batch_rows=4, grad_clip=0.5), quiet=True)
    wanted = column(runs / "plain" / "zero3", "loss")
    assert column(tmp_path / "alone", "loss") == pytest.approx(wanted, abs=1e-5)


def test_bad_steps_are_left_out_and_weights_go_back(runs: Path) -> None:
    ddp = runs / "spikes" / "ddp"
    problems: list[str | None] = [line["problem"] for line in metrics(ddp)]
    bad = [problem is not None for problem in problems]
    assert True in bad[2:6]  # after a snapshot, and a step follows
    assert str(problems[6]).startswith("loss nan")  # of one process
    for way in ("fsdp", "zero3"):
        run = runs / "spikes" / way
        assert [problem is not None for problem in column(run, "problem")] == bad
        assert column(run, "loss") == pytest.approx(column(ddp, "loss"), abs=1e-4, nan_ok=True)
        assert all(tensor.isfinite().all() for tensor in load_file(run / "model/model.safetensors").values())


def test_adapters_alone_are_trained_and_saved(runs: Path) -> None:
    ddp, zero3 = runs / "adapters" / "ddp", runs / "adapters" / "zero3"
    assert column(zero3, "loss") == pytest.approx(column(ddp, "loss"), abs=1e-5)
    file = "model/adapter_model.safetensors"
    assert largest_difference(ddp / file, zero3 / file) < 1e-5


def test_a_stock_family_trains_with_a_picture_on_one_process_only(runs: Path) -> None:
    ddp, zero3 = runs / "stock" / "ddp", runs / "stock" / "zero3"
    assert column(zero3, "loss") == pytest.approx(column(ddp, "loss"), abs=1e-5)
    assert column(zero3, "held_out_loss")[1:] == pytest.approx(column(ddp, "held_out_loss")[1:], abs=1e-5)


def test_tasks_get_the_answers_of_whole_copies(runs: Path) -> None:
    for run, number in (("plain", 3 * 9), ("stock", 3 * 4)):
        ddp, zero3 = ((runs / run / way / "evaluation.jsonl").read_text() for way in ("ddp", "zero3"))
        assert ddp == zero3
        assert len(ddp.splitlines()) == number
