"""From configuration to the objects of a run: mixture, model, processor.

data[] --build_source--> Mixture --texts--> tokenizer (from scratch only) --> model, processor
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, patch_environment
from transformers import PreTrainedModel, ProcessorMixin

from infinity_mm.data.conversation import IMAGE_PLACEHOLDER
from infinity_mm.data.measure import BAD_SAMPLE
from infinity_mm.data.mixture import Mixture, WeightedSource
from infinity_mm.data.sources import build_source
from infinity_mm.errors import explain
from infinity_mm.families import INFINITY_MM, family_of
from infinity_mm.families.base import Family, Limits
from infinity_mm.model.build import build_model
from infinity_mm.model.parts import build_from_parts
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.training import lora as adapters
from infinity_mm.training.config import DataConfig, LoraConfig, StartConfig, source_name

PATIENCE = timedelta(hours=12)
"""How long processes wait for one of them: while they do, the main one measures all texts, or writes a checkpoint.
Torch's own ten minutes on GPUs end such a run."""


def new_accelerator(precision: Literal["fp32", "bf16"], **kwargs: Any) -> Accelerator:
    """accelerate keeps its state for the life of the process; a second run in one process starts afresh.

    It is never told of DeepSpeed, see zero3.py. But it imports it, where that is installed, to save a model; and
    DeepSpeed, if it has to find out by itself that there is no GPU, says so on standard output, which may be JSON.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    AcceleratorState._reset_state()
    GradientState._reset_state()
    with patch_environment(accelerate_use_deepspeed="false"):
        return Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PATIENCE),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=True
                ),  # one gradient in memory, not two
            ],
            **kwargs,
        )


def build_mixture(data: Sequence[DataConfig], *, temperature: float = 1.0) -> Mixture:
    """All data sources."""
    parts = [
        WeightedSource(
            source=build_source(d.kind, d.options), name=source_name(number, d), weight=d.weight, cap=d.cap
        )
        for number, d in enumerate(data)
    ]
    return Mixture(parts, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a run trains."""

    family: Family
    model: Any
    """A `PreTrainedModel`; adapters, if any, are in its layers. Typed loosely: its parts differ by family."""
    processor: Any
    adapter: Any = None
    """peft's view of the same model, which saves the adapters alone."""


def start_model(
    start: StartConfig, mixture: Mixture, *, lora: LoraConfig | None = None, resumed: Path | None = None
) -> Started:
    """Model in float32 and processor, loaded or built, the same on every process; or those of checkpoint `resumed`."""
    if start.build is not None and resumed is None:
        words = build_mixture(start.tokenizer.data) if start.tokenizer.data else mixture
        tokenizer = build_tokenizer(corpus(words, start.tokenizer.num_samples), start.tokenizer.vocab_size)
        model, processor = build_model(start.build, tokenizer)
        if start.vision_tower is not None:
            load_tower(model, Path(start.vision_tower))
        return Started(family=INFINITY_MM, model=model, processor=processor)
    if start.parts is not None and resumed is None:
        model, processor = build_from_parts(start.parts)
        return Started(family=INFINITY_MM, model=model, processor=processor)
    if lora is None and resumed is not None:  # as it was saved, limits included
        family, model, processor = load_family(resumed)
        return Started(family=family, model=model, processor=processor)
    assert start.path is not None
    folder, options = Path(start.path), {}
    if lora is not None:
        options = adapters.base_options(lora, family_of(folder, convert=start.convert).parts)
    family, model, processor = load_family(folder, convert=start.convert, **options)
    family.limit(model, processor, limits_of(start))
    if lora is None:
        return Started(family=family, model=model, processor=processor)
    adapter = adapters.load(model, resumed) if resumed else adapters.add(model, family, lora)
    return Started(family=family, model=model, processor=processor, adapter=adapter)


def limits_of(start: StartConfig) -> Limits:
    """How large images may become from now on."""
    return Limits(**{field.name: getattr(start, field.name) for field in fields(Limits)})


def load_tower(model: PreTrainedModel, folder: Path) -> None:
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


def load_family(
    folder: Path, *, convert: bool = False, **options: Any
) -> tuple[Family, PreTrainedModel, ProcessorMixin]:
    """A checkpoint folder's family, its model in float32 unless `options` say otherwise, and its processor."""
    if (folder / "adapter_config.json").is_file():
        raise explain(
            what=f"{folder} holds adapters alone",
            where="model.path",
            fix="train with lora.merge: true, or merge them with peft; model.path wants a whole model",
        )
    family = family_of(folder, convert=convert)
    return family, *family.load(folder, **options)


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
