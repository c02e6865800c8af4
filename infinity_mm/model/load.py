"""Any checkpoint folder that holds a model of ours, or a released one that becomes one."""

from pathlib import Path

import torch

from infinity_mm.errors import explain
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.released import is_released, load_released, read_released


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """Model and processor from a checkpoint folder, by its config.json."""
    _check_folder(folder)
    if is_released(folder):
        return load_released(folder, dtype=dtype)
    model = InfinityMMForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model, InfinityMMProcessor.from_pretrained(folder)


def load_sizes(folder: Path) -> tuple[InfinityMMConfig, InfinityMMProcessor]:
    """The same without the weights: configuration and processor."""
    _check_folder(folder)
    if is_released(folder):
        return read_released(folder)
    return InfinityMMConfig.from_pretrained(folder), InfinityMMProcessor.from_pretrained(folder)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise explain(
            what=f"{folder} is not a checkpoint folder: it has no config.json",
            where="model.path",
            fix="give the folder that holds config.json, model.safetensors and the processor",
        )
