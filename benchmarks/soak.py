"""A long run with everything going wrong: unreadable images, losses that are not numbers, kills, a full disk.

    python benchmarks/soak.py [--steps 1000] [--lives 12] [--folder DIR]

Trains a toy model on images and texts made here, one image in nineteen of them broken. The run is killed with SIGKILL,
or denied disk space by the operating system (a limit on the size of a file) as it begins to write a checkpoint, again
and again; now and then a step has a loss of NaN and is left out. The same command starts it again each time. Afterwards
every sample must be accounted for: each step done once with the samples a loader without any trouble gives, each broken
image listed.
"""

import argparse
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SAMPLES, BROKEN_EVERY = 600, 19
MODEL = {
    "vision_hidden": 32, "vision_layers": 1, "vision_heads": 1, "vision_mlp": 32, "patch_px": 8, "scale_px": 32,
    "text_hidden": 32, "text_layers": 1, "text_heads": 1, "text_kv_heads": 1, "text_mlp": 32, "max_slices": 1,
}  # fmt: skip


def write_data(path: Path) -> set[str]:
    """Conversations about one-coloured images; returns the ids of the broken ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = random.Random(0)
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    rows, broken = [], set()
    for number in range(SAMPLES):
        name, value = rng.choice(list(colours.items()))
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), value).save(buffer, format="PNG")
        data = buffer.getvalue()
        if number % BROKEN_EVERY == 7:
            data = (
                data[:40] if number % 2 else data[: len(data) // 2]
            )  # seen in the header, or only in the pixels
            broken.add(f"s{number}")
        user = [{"type": "image", "text": ""}, {"type": "text", "text": "What colour is it?"}]
        answer = [{"type": "text", "text": name}]
        rows.append(
            {
                "id": f"s{number}",
                "images": [{"bytes": data, "path": None}],
                "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    return broken


def save_every(steps: int) -> int:
    return max(10, steps // 100)


def nan_every(steps: int) -> int:
    return min(997, steps // 5)


def config_of(folder: Path, steps: int) -> Any:
    from infinity_mm.config import build
    from infinity_mm.training.config import SftConfig

    plain = {
        "out_dir": str(folder / "run"),
        "model": {"build": MODEL, "tokenizer": {"vocab_size": 320, "num_samples": 4}},
        "data": [{"kind": "parquet", "options": {"path": str(folder / "data.parquet")}}],
        "row_tokens": 128,
        "global_batch_rows": 2,
        "micro_batch_rows": 1,
        "window": 32,
        "steps": steps,
        "schedule": {"warmup_steps": 10, "decay_fraction": 0.1},
        "spike": {"action": "rewind", "snapshot_every_steps": save_every(steps) // 2},
        "num_workers": 0,
        "threads": 1,
        "save_every_steps": save_every(steps),
        "save_in_background": True,
        "trackers": [],
    }
    return build(SftConfig, plain)


def live(folder: Path, steps: int, disk_full_at: int | None) -> None:
    """One life of the run, in a process of its own."""
    from infinity_mm.training import loop, sft

    train_step, done = loop.set_lr, Counter()
    local_loss, save_checkpoint = loop.local_loss, sft.save_checkpoint

    def at_step(optimizer: Any, factor: float) -> None:
        done["steps"] += 1
        train_step(optimizer, factor)

    def save(*args: Any, **keys: Any) -> Any:
        if disk_full_at is not None and done["steps"] >= disk_full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return save_checkpoint(*args, **keys)

    def spoiled(*args: Any, **keys: Any) -> Any:
        found = local_loss(*args, **keys)
        bad = done["steps"] % nan_every(steps) == min(61, nan_every(steps) // 2)
        return found._replace(loss=found.loss * float("nan")) if bad else found

    loop.set_lr, loop.local_loss, sft.save_checkpoint = at_step, spoiled, save
    sft.train(config_of(folder, steps), quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--lives", type=int, default=12, help="interruptions")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--disk-full-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.live:
        live(options.folder, options.steps, options.disk_full_at)
        return
    with tempfile.TemporaryDirectory() as name:
        soak(options.folder or Path(name), options.steps, options.lives)


def soak(folder: Path, steps: int, lives: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    broken, start = write_data(folder / "data.parquet"), time.perf_counter()
    rng, ends = random.Random(1), Counter()
    log = folder / "run" / "metrics.jsonl"
    for number in range(lives + 1):
        last = number == lives
        command = [sys.executable, __file__, "--live", "--folder", str(folder), "--steps", str(steps)]
        full = number % 3 == 1 and not last
        target = int(steps * (number + rng.random()) / lives)  # interruptions spread over the whole run
        if full:
            command += ["--disk-full-at", str(rng.randint(1, save_every(steps)))]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        while process.poll() is None and not last and not full and lines(log) < target:
            time.sleep(0.01)
        if process.poll() is None and not last and not full:
            process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1].decode()
        if process.returncode == -signal.SIGKILL:
            ends["killed"] += 1
        elif process.returncode and "too large" in errors:
            if not list((folder / "run").glob("checkpoint-*.partial")):
                raise RuntimeError(f"life {number} ended outside a checkpoint: {errors}")
            ends["disk full"] += 1
        elif process.returncode or not last:
            raise RuntimeError(f"life {number} ended with {process.returncode}: {errors}")
    report(folder, steps, broken, ends, time.perf_counter() - start)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def report(folder: Path, steps: int, broken: set[str], ends: Counter, seconds: float) -> None:
    """Compare what the run wrote with what a loader alone gives."""
    from infinity_mm.data.encode import Encoder
    from infinity_mm.data.ledger import account
    from infinity_mm.data.loader import LoaderConfig, LoaderState, RowLoader
    from infinity_mm.data.quarantine import read_quarantine
    from infinity_mm.families.infinity_mm import INFINITY_MM
    from infinity_mm.model.load import load_model
    from infinity_mm.record import digest
    from infinity_mm.training.mixing import build_planner
    from infinity_mm.training.start import build_mixture

    run = folder / "run"
    config = config_of(folder, steps)
    model, processor = load_model(run / "model")
    vision_cost = INFINITY_MM.vision_cost(model.config)
    planner, _ = build_planner(config, build_mixture(config.data), Encoder(processor), vision_cost, [])
    rows = LoaderConfig(global_batch_rows=config.global_batch_rows, micro_batch_rows=1, num_workers=0)
    loader = RowLoader(planner, rows, state=LoaderState())
    expected, used, bad = [], Counter(), Counter()
    for _, batch in zip(range(steps), loader):
        ids = sorted(id_ for micro in batch.micro_batches for row in micro.ids for id_ in row)
        expected.append(digest(*ids)[:16])
        used.update(ids)
        fates = (*batch.dropped, *batch.spoiled)
        bad.update(drop.id for drop in fates if drop.fate == "quarantined")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    listed = {entry.id for entry in read_quarantine(run / "quarantine.jsonl")}
    found = account(run / "ledger.jsonl")  # raises where a sample has no fate, or two
    last = max(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    state = json.loads((last / "trainer" / "state.json").read_text())
    checks = {
        "every step is done once, in order": [m["step"] for m in metrics] == list(range(1, steps + 1)),
        "with the samples of a loader without trouble": [m["samples_digest"] for m in metrics] == expected,
        "samples of the log, of the checkpoint and of the loader are as many": sum(
            m["samples"] for m in metrics
        )
        == state["samples"]
        == used.total(),
        f"the ledger adds up: {found.line()}": found.steps == steps
        and found.used == state["samples"] - state["skipped"]
        and found.dropped.get("step left out", 0) == state["skipped"] == sum(len(s["ids"]) for s in skipped)
        and sum(found.quarantined.values()) == bad.total(),
        "no broken image was learned from, each that came is listed": not broken & used.keys()
        and listed == bad.keys() <= broken
        and len(listed) > 0,
        "steps left out are those of the log": [s["step"] for s in skipped]
        == [m["step"] for m in metrics if m["problem"]],
        "it still learned": metrics[-1]["loss"] < 0.5 * metrics[0]["loss"],
    }
    print(
        f"{steps} steps in {seconds:.0f} s, {ends['killed']} kills, {ends['disk full']} times without disk space, "
        f"{len(skipped)} steps with NaN, {len(broken)} of {SAMPLES} images broken; "
        f"{used.total()} samples, loss {metrics[0]['loss']:.2f} -> {metrics[-1]['loss']:.2f}\n"
    )
    for name, holds in checks.items():
        print(f"- {name}: {'yes' if holds else 'NO'}")
    if not all(checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
