"""Kill -9 at some step, start again, compare with a run that nobody killed: the samples of every step, and the loss.

    python benchmarks/resume.py [--worlds 1 2 4] [--kill-after 1 3 4]

Trains configs/train/tiny.yaml on the CPU. A run may also be finished by another number of processes; then the samples
must be the same, and the loss the same to rounding, because sums over processes are made in another order.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
STEPS, SAVE_EVERY, ROWS = 60, 8, 4


@dataclass(frozen=True)
class Row:
    """What one interrupted run came to."""

    killed_world: int
    resumed_world: int
    killed_after: int
    """Step whose metrics had been written when the kill came; the signal may reach a later one."""
    resumed_at: int
    """Steps that the checkpoint had."""
    same_samples: bool
    loss_difference: float
    """Largest, over all steps."""


def launch(out_dir: Path, world: int) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    script = ["train/sft.py", "--config", "configs/train/tiny.yaml", "--quiet", f"out_dir={out_dir}"]
    overrides = [f"steps={STEPS}", f"save_every_steps={SAVE_EVERY}", f"micro_batch_rows={ROWS // world}"]
    return subprocess.Popen(
        [sys.executable, *launcher, *script, f"global_batch_rows={ROWS}", "threads=1", *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode())


def kill(process: subprocess.Popen, out_dir: Path, after: int) -> None:
    """SIGKILL to all processes of a run once it has logged step `after`."""
    while len(metrics(out_dir)) < after and process.poll() is None:
        time.sleep(0.002)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in reversed(family):  # the launcher's children are in sessions of their own
        member.kill()
    process.communicate()
    psutil.wait_procs(family)


def metrics(out_dir: Path) -> list[dict[str, Any]]:
    file = out_dir / "metrics.jsonl"
    lines = file.read_text().split("\n") if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def interrupted(folder: Path, wanted: list[dict[str, Any]], worlds: tuple[int, int], after: int) -> Row:
    out_dir = folder / "run"
    shutil.rmtree(out_dir, ignore_errors=True)
    kill(launch(out_dir, worlds[0]), out_dir, after)
    saved = [int(p.name.split("-")[1]) for p in out_dir.glob("checkpoint-*") if p.name[11:].isdigit()]
    finish(launch(out_dir, worlds[1]))
    found = metrics(out_dir)
    return Row(
        *worlds,
        killed_after=after,
        resumed_at=max(saved, default=0),
        same_samples=[(m["step"], m["samples_digest"]) for m in found]
        == [(m["step"], m["samples_digest"]) for m in wanted],
        loss_difference=max(abs(a["loss"] - b["loss"]) for a, b in zip(found, wanted, strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--kill-after", type=int, nargs="+", default=[3, 21, 43])
    options = parser.parse_args()
    print(f"{STEPS} steps of {ROWS} rows, a checkpoint every {SAVE_EVERY} steps\n")
    print(
        "| processes | finished by | killed after step | resumed at | same samples | largest difference of loss |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = {}
        for world in options.worlds:
            finish(launch(folder / f"whole-{world}", world))
            wanted[world] = metrics(folder / f"whole-{world}")
        same = [((w, w), after) for w in options.worlds for after in options.kill_after]
        other = [(pair, options.kill_after[-1]) for pair in itertools.permutations(options.worlds, 2)]
        for pair, after in same + other:
            row = interrupted(folder, wanted[pair[0]], pair, after)
            print(
                f"| {row.killed_world} | {row.resumed_world} | {row.killed_after} | {row.resumed_at} | "
                f"{'yes' if row.same_samples else 'NO'} | {row.loss_difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
