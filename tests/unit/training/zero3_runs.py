"""Run by two processes: runs with whole copies (DDP) and the same ones under ZeRO-3, in FOLDER/<run>/<way>.

FOLDER holds a stock checkpoint `start` and `data.json`, conversations with and without pictures.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from toy_run import tiny_config

from infinity_mm.training.sft import train

torch.set_num_threads(1)
folder = Path(sys.argv[1])


def run(name: str, way: str, **changes: Any) -> None:
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(way == "zero3").lower()
    train(tiny_config(folder / name / way, **changes), quiet=True)


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
for way in ("ddp", "zero3"):
    run("plain", way, **plain)
    run("spikes", way, steps=8, language_model=unstable, save_every_steps=8, spike=spike)
    run("adapters", way, steps=2, **adapted)
    run("stock", way, steps=3, **stock)
if os.environ["RANK"] == "0":
    shutil.copytree(folder / "plain" / "zero3", folder / "resumed" / "zero3")
    for made_later in ("checkpoint-6", "model"):
        shutil.rmtree(folder / "resumed" / "zero3" / made_later)
torch.distributed.barrier()
run("resumed", "zero3", **plain)
torch.distributed.destroy_process_group()
