"""A very small model, samples to train it on, and a run on the wind tunnel, for the tests of this folder."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from infinity_mm.config import build
from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.encode import Encoded, Encoder
from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.training.config import SftConfig

SPEC = ModelSpec(
    vision_hidden=32, vision_layers=2, vision_heads=2, vision_mlp=48, patch_px=4, scale_px=16,
    text_hidden=32, text_layers=2, text_heads=4, text_kv_heads=2, text_mlp=48, seed=3,
)  # fmt: skip

Exchange = tuple[str, str]
TWO: list[Exchange] = [("What is it?", "a red circle"), ("Which?", "red")]


@cache
def _tokenizer() -> Any:
    return build_tokenizer(["What is it? Which? a red circle user assistant\n"] * 3, 300)


def model_and_encoder() -> tuple[Any, Encoder]:
    """Fresh; weights are spread out so that outputs depend visibly on inputs."""
    model, processor = build_model(SPEC, _tokenizer())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.15)
    return model.train(), Encoder(processor)


def picture(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(exchanges: list[Exchange], *images: int, id_: str = "a") -> Conversation:
    """Exchanges about the pictures with the given seeds."""
    messages = [m for q, a in exchanges for m in (Message("user", q), Message("assistant", a))]
    return Conversation(id=id_, images=tuple(picture(seed) for seed in images), messages=tuple(messages))


def three_samples(encoder: Encoder, first_image: int = 1) -> list[Encoded]:
    """With one image, with two, and text only; lengths differ."""
    conversations = [
        conversation(TWO, first_image),
        conversation(TWO[:1], 2, 3, id_="b"),
        conversation(TWO[1:], id_="c"),
    ]
    return [encoder.encode(c, "causal") for c in conversations]


def tiny_config(out_dir: Path, **changes: Any) -> SftConfig:
    """A run of six steps on the wind tunnel, resumable after every second one."""
    options = {
        "world_seed": 0,
        "num_images": 24,
        "exchanges_per_image": 2,
        "tasks": {"caption_short": 1.0, "answer_short": 1.0},
    }
    plain: dict[str, Any] = {
        "out_dir": out_dir,
        "model": {
            "build": {
                "vision_hidden": 32, "vision_layers": 1, "vision_heads": 1, "vision_mlp": 32, "patch_px": 8,
                "scale_px": 32, "text_hidden": 32, "text_layers": 1, "text_heads": 1, "text_kv_heads": 1,
                "text_mlp": 32,
            },
            "tokenizer": {"vocab_size": 320, "num_samples": 4},
        },
        "data": [{"kind": "windtunnel", "options": options}],
        "row_tokens": 512,
        "global_batch_rows": 2,
        "micro_batch_rows": 1,
        "window": 8,
        "steps": 6,
        "schedule": {"name": "wsd", "warmup_steps": 1, "decay_steps": 2},
        "num_workers": 0,
        "save_every_steps": 2,
        "trackers": [],
    }  # fmt: skip
    return build(SftConfig, plain | changes)
