"""From configuration to the objects of a run: mixture, model, processor.

data[] --build_source--> Mixture --texts--> tokenizer (from scratch only) --> model, processor
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from infinity_mm.data.conversation import IMAGE_PLACEHOLDER
from infinity_mm.data.mixture import Mixture, WeightedSource
from infinity_mm.data.sources import build_source
from infinity_mm.errors import explain
from infinity_mm.model.build import build_model
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.training.config import DataConfig, StartConfig


def build_mixture(data: Sequence[DataConfig]) -> Mixture:
    """All data sources."""
    return Mixture([WeightedSource(source=build_source(d.kind, d.options), weight=d.weight) for d in data])


def start_model(
    start: StartConfig, mixture: Mixture
) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """Model in float32 and processor, loaded or built; the same on every process."""
    if start.build is not None:
        words = build_mixture(start.tokenizer.data) if start.tokenizer.data else mixture
        tokenizer = build_tokenizer(corpus(words, start.tokenizer.num_samples), start.tokenizer.vocab_size)
        return build_model(start.build, tokenizer)
    assert start.path is not None
    return load_model(Path(start.path))


def load_model(folder: Path) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """Model in float32 and processor from a checkpoint folder."""
    if not (folder / "config.json").is_file():
        raise explain(
            what=f"{folder} is not a checkpoint folder: it has no config.json",
            where="model.path",
            fix="give the folder that holds config.json, model.safetensors and the processor",
        )
    model = InfinityMMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, InfinityMMProcessor.from_pretrained(folder)


def corpus(mixture: Mixture, num_samples: int) -> Iterator[str]:
    """Texts of `num_samples` conversations spread evenly over the mixture."""
    stride = max(1, len(mixture) // num_samples)
    for index in range(0, min(len(mixture), stride * num_samples), stride):
        for message in mixture.get(0, index)[0].messages:
            yield f"{message.role}\n" + message.text.replace(
                IMAGE_PLACEHOLDER, ""
            )  # as the chat template writes it
