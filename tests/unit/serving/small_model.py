"""A very small model with its processor, for the tests of this folder."""

from dataclasses import replace
from typing import Any, Literal

from PIL import Image

from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.tokenizer import build_tokenizer

SPEC = ModelSpec(
    vision_hidden=32, vision_layers=1, vision_heads=2, vision_mlp=48, patch_px=4, scale_px=32,
    text_hidden=32, text_layers=1, text_heads=2, text_kv_heads=1, text_mlp=48, seed=3,
)  # fmt: skip


def small_model(views: Literal["uhd", "anyres"] = "uhd") -> tuple[Any, Any]:
    """In evaluation mode; typed loosely, because transformers' annotations hide what its objects take."""
    model, processor = build_model(
        replace(SPEC, views=views), build_tokenizer(["What colour is the circle? red and blue\n"] * 4, 320)
    )
    return model.eval(), processor


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")
