"""A very small model with its processor, and random pictures, for the tests of this folder."""

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.tokenizer import build_tokenizer

TINY = ModelSpec(
    vision_hidden=32, vision_layers=2, vision_heads=2, vision_mlp=48, patch_px=4, scale_px=32,
    text_hidden=32, text_layers=2, text_heads=4, text_kv_heads=2, text_mlp=48, seed=3,
)  # fmt: skip


@cache
def tokenizer() -> Any:
    return build_tokenizer(["What colour is the circle? The circle is red, 12 px wide.\n"] * 4, 320)


def model_and_processor() -> tuple[Any, Any]:
    """Fresh, in evaluation mode; weights are spread out so that outputs depend visibly on inputs.

    Typed loosely: transformers' own annotations hide most of what its objects take.
    """
    model, processor = build_model(TINY, tokenizer())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.15)
    return model.eval(), processor


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(num_images: int, question: str = "What colour is the circle?") -> str:
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": question}]
    return str(
        tokenizer().apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )
