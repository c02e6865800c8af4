"""Tensor names of a saved model as they were in the checkpoint it came from.

transformers writes most families back as they were released. The SigLIP tower of LLaVA-OneVision is an exception: the
level `vision_model.` is gone from its names, and servers that know the released form refuse the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

_INDEX = "model.safetensors.index.json"
_LEVEL = "vision_model."
"""What may have been left out of a name."""


def tensor_names(folder: Path) -> set[str]:
    """The names of all weights of a checkpoint folder."""
    if (folder / _INDEX).is_file():
        return set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"])
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def restore_names(folder: Path, wanted: set[str]) -> None:
    """Give the weights in `folder` the names they have in `wanted`, where only the level differs."""
    saved = tensor_names(folder)
    lost = {name.replace(_LEVEL, "", 1): name for name in wanted - saved if _LEVEL in name}
    back = {name: lost[name] for name in saved if name in lost}
    if not back:
        return
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {back.get(name, name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {back.get(name, name): file for name, file in index["weight_map"].items()}
        (folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
