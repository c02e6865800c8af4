"""Run by two processes: runs with whole copies (DDP) and the same ones under ZeRO-3, in FOLDER/<run>/<way>; the one
with bad steps also under FSDP2.

FOLDER holds a stock checkpoint `start` and `data.json`, conversations with and without pictures.
"""

import os
import shutil
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import tiny_config

from infinity_mm.training import loop
from infinity_mm.training.sft import train

torch.set_num_threads(1)
folder = Path(sys.argv[1])


def run(name: str, way: str, **changes: Any) -> None:
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(way == "zero3").lower()
    os.environ["ACCELERATE_USE_FSDP"] = str(way == "fsdp").lower()
    train(tiny_config(folder / name / way, **changes), quiet=True)


def nan_on_one_process(at_step: int) -> Any:
    """The loss of a run with one micro-batch a process and step."""
    local_loss, calls = loop.local_loss, count(1)

    def spoiled(*args: Any, **keys: Any) -> Any:
        found = local_loss(*args, **keys)
        bad = next(calls) == at_step and os.environ["RANK"] == "1"
        return found._replace(loss=found.loss * float("nan")) if bad else found

    return spoiled


# Two micro-batches a process and step; the gradient is clipped.
plain: dict[str, Any] = {
    "global_batch_rows": 4,
    "grad_clip": 0.5,
    "save_in_background": True,
    "save_every_steps": 4,
    # Three pictures for two processes, which so answer numbers of questions that differ.
    "tasks": [
        {
            "name": "world",
            "kind": "windtunnel",
            "options": {"world_seed": 3, "num_images": 3},
            "every_steps": 2,
        }
    ],
}
constant = {"name": "constant"}
unstable = {"lr": 0.05}
spike = {"factor": 1.01, "window": 1, "action": "rewind", "snapshot_every_steps": 2, "max_in_a_row": 9}
data = {"kind": "llava_json", "options": {"path": str(folder / "data.json"), "image_folder": str(folder)}}
adapted = {"model": {"path": str(folder / "plain" / "ddp" / "model")}, "lora": {"r": 2}, "schedule": constant}
# One sample a row: in some steps one process has a picture and the other has not.
stock = {
    "model": {"path": str(folder / "start")},
    "data": [data],
    "row_tokens": 44,
    "window": 3,
    "held_out": {"data": [data], "every_steps": 2, "rows": 2},
    "tasks": [{**data, "name": "three", "every_steps": 1, "max_new_tokens": 8}],
    "schedule": constant,
}
for way in ("ddp", "fsdp", "zero3"):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(loop, "local_loss", nan_on_one_process(at_step=7))
    run("spikes", way, steps=9, language_model=unstable, save_every_steps=9, spike=spike)
    monkeypatch.undo()
for way in ("ddp", "zero3"):
    run("plain", way, **plain)
    run("adapters", way, steps=2, **adapted)
    run("stock", way, steps=3, **stock)
if os.environ["RANK"] == "0":
    shutil.copytree(folder / "plain" / "zero3", folder / "resumed" / "zero3")
    for made_later in ("checkpoint-6", "model"):
        shutil.rmtree(folder / "resumed" / "zero3" / made_later)
torch.distributed.barrier()
run("resumed", "zero3", **plain)
torch.distributed.destroy_process_group()
