"""A stock family on two processes, also sharded, of which one has a text and the other a picture in the same step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "families"))

from tiny_families import write_checkpoint, write_three  # noqa: E402 # pyright: ignore[reportMissingImports]


def train(folder: Path, num_processes: int, **environment: str) -> tuple[list[float], dict[str, str]]:
    """Losses, and the replies to a task's questions after every step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    source = {
        "kind": "llava_json",
        "options": {"path": str(folder / "data.json"), "image_folder": str(folder)},
    }
    config = {
        "out_dir": str(folder / f"out{num_processes}{len(environment)}"),
        "model": {"path": str(folder / "start")},
        "data": [source],
        "row_tokens": 44,  # one sample a row
        "global_batch_rows": 2,
        "micro_batch_rows": 1,
        "window": 3,
        "steps": 3,
        "schedule": {"name": "constant"},
        "num_workers": 0,
        "held_out": {"data": [source], "every_steps": 2, "rows": 2},
        "tasks": [{**source, "name": "three", "every_steps": 1, "max_new_tokens": 8}],
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, *launcher, "train/sft.py", "--config", str(folder / "config.yaml")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert f"{num_processes} process(es)" in done.stdout.replace("\n", " ")
    steps, answered = (
        [json.loads(line) for line in (Path(config["out_dir"]) / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "evaluation.jsonl")
    )
    assert [step["tasks"]["three"]["num_questions"] for step in steps] == [4, 4, 4]
    replies = {f"{line['step']} {line['id']}": line["reply"] for line in answered}
    return [step["loss"] for step in steps] + [step["held_out_loss"] for step in steps[1:]], replies


@pytest.mark.integration
def test_two_processes_with_and_without_pictures_compute_losses_and_answers_of_one(tmp_path: Path) -> None:
    write_checkpoint("qwen3_vl", tmp_path / "start")
    write_three(tmp_path)
    one, replies = train(tmp_path, 1)
    for environment in ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}):
        two, same_replies = train(tmp_path, 2, **environment)
        assert two == pytest.approx(one, abs=1e-4)
        assert same_replies == replies
    assert len(replies) == 12
