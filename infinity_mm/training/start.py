"""From configuration to the objects of a run: mixture, model, processor.

data[] --build_source--> Mixture --texts--> tokenizer (from scratch only) --> model, processor
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from infinity_mm.data.conversation import IMAGE_PLACEHOLDER
from infinity_mm.data.measure import BAD_SAMPLE
from infinity_mm.data.mixture import Mixture, WeightedSource
from infinity_mm.data.sources import build_source
from infinity_mm.errors import explain
from infinity_mm.model.build import build_model
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.load import load_model
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.parts import build_from_parts
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.training.config import DataConfig, StartConfig, source_name


def new_accelerator(precision: Literal["fp32", "bf16"], **kwargs: Any) -> Accelerator:
    """accelerate keeps its state for the life of the process; a second run in one process starts afresh."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", **kwargs)


def build_mixture(data: Sequence[DataConfig], *, temperature: float = 1.0) -> Mixture:
    """All data sources."""
    parts = [
        WeightedSource(
            source=build_source(d.kind, d.options), name=source_name(number, d), weight=d.weight, cap=d.cap
        )
        for number, d in enumerate(data)
    ]
    return Mixture(parts, temperature=temperature)


def start_model(
    start: StartConfig, mixture: Mixture
) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """Model in float32 and processor, loaded or built; the same on every process."""
    if start.build is not None:
        words = build_mixture(start.tokenizer.data) if start.tokenizer.data else mixture
        tokenizer = build_tokenizer(corpus(words, start.tokenizer.num_samples), start.tokenizer.vocab_size)
        model, processor = build_model(start.build, tokenizer)
        if start.vision_tower is not None:
            load_tower(model, Path(start.vision_tower))
        return model, processor
    if start.parts is not None:
        return build_from_parts(start.parts)
    assert start.path is not None
    model, processor = load_model(Path(start.path))
    change_views(model.config, processor.image_processor, start)
    return model, processor


def change_views(config: InfinityMMConfig, images: InfinityMMImageProcessor, start: StartConfig) -> None:
    """Cut images as `start` says from now on; both objects keep it, so that it is saved with the model."""
    changes: dict[str, dict[str, Any]] = {
        "uhd": {"scale_px": start.scale_px, "max_slices": start.max_slices},
        "anyres": {
            "grids": start.grids and [list(grid) for grid in start.grids],
            "max_tiles": start.max_tiles,
        },
    }
    for views, values in changes.items():
        for key, value in values.items():
            if value is None:
                continue
            if views != config.views:
                raise explain(
                    what=f"model.{key} is given, but the checkpoint cuts images by {config.views}",
                    where="YAML section `model`",
                    fix=f"use {' or '.join(changes[config.views])}",
                )
            setattr(config, key, value)
            setattr(images, key, value)
    config.view_config()  # impossible values fail here


def load_tower(model: InfinityMMForConditionalGeneration, folder: Path) -> None:
    """Replace the weights of the model's vision tower by those of a trained tower of the same sizes."""
    if not (folder / "config.json").is_file():
        raise explain(
            what=f"{folder} holds no vision tower: it has no config.json",
            where="model.vision_tower",
            fix="train one (train/tower.py), or give the folder that holds config.json and model.safetensors",
        )
    trained = VisionTower.from_pretrained(folder, dtype=torch.float32).state_dict()
    tower = model.model.vision_tower
    wrong = (
        sorted(name for name, own in tower.state_dict().items() if trained[name].shape != own.shape)
        if trained.keys() == tower.state_dict().keys()
        else sorted(trained.keys() ^ tower.state_dict().keys())
    )
    if wrong:
        raise explain(
            what=f"the tower in {folder} has other sizes than model.build, for example at {wrong[0]}",
            where="model.vision_tower",
            fix="give model.build the sizes of the tower's config.json",
        )
    tower.load_state_dict(trained)


def corpus(mixture: Mixture, num_samples: int) -> Iterator[str]:
    """Texts of `num_samples` conversations spread evenly over the mixture."""
    stride = max(1, len(mixture) // num_samples)
    for index in range(0, min(len(mixture), stride * num_samples), stride):
        try:
            messages = mixture.outline(0, index).messages
        except BAD_SAMPLE:  # the ledger of the run names it
            continue
        for message in messages:
            yield f"{message.role}\n" + message.text.replace(
                IMAGE_PLACEHOLDER, ""
            )  # as the chat template writes it
