"""A small model with random weights, saved as a folder, and drawn images for it."""

import hashlib
import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from infinity_mm.engines.base import Request
from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.tokenizer import IM_END, build_tokenizer
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn
from infinity_mm.vision.images import BadImage

TINY = ModelSpec(
    vision_hidden=32, vision_layers=2, vision_heads=2, vision_mlp=64, patch_px=8, scale_px=32,
    text_hidden=64, text_layers=2, text_heads=2, text_kv_heads=1, text_mlp=128, max_positions=400,
)  # fmt: skip
WORDS = [
    "a red circle left of a blue square",
    "yes no",
    "1 2 3 4 5 6 7 8 9 10",
    "user assistant system Score:",
]


def save_tiny(folder: Path) -> Path:
    """Random weights, scaled up so that different prompts get different replies, some of which end early."""
    tokenizer = build_tokenizer(WORDS, 340)
    model, processor = build_model(TINY, tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15, generator=generator)
        model.lm_head.weight[tokenizer.get_vocab()[IM_END]] *= 2  # the embedding too: they are tied
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class Drawn:
    """Images drawn on request, by number; counts how often each was read."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.num_reads = 0

    def image(self, number: int, size: tuple[int, int] = (64, 48)) -> ImageRef:
        picture = Image.new("RGB", size, (40 * number % 256, 90, 200))
        ImageDraw.Draw(picture).ellipse(
            (number * 3, 5, number * 3 + 25, 30), fill=(250, 20 * number % 256, 0)
        )
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return self.add(buffer.getvalue(), size)

    def add(self, data: bytes, size: tuple[int, int] = (64, 48)) -> ImageRef:
        sha256 = hashlib.sha256(data).hexdigest()
        self.data[sha256] = data
        return ImageRef(sha256=sha256, uri=f"memory:{sha256}", width=size[0], height=size[1])

    def read(self, image: ImageRef) -> bytes:
        self.num_reads += 1
        if image.sha256 not in self.data:
            raise BadImage("missing", image.uri)
        return self.data[image.sha256]


def look(
    image: ImageRef | tuple[ImageRef, ...],
    text: str,
    *,
    max_new_tokens: int = 12,
    temperature: float = 0.0,
    seed: int = 0,
    draw: int = 0,
    choices: tuple[str, ...] = (),
) -> Request:
    """One question about images, which come first."""
    images = image if isinstance(image, tuple) else (image,)
    slots = tuple(ImageSlot(i) for i in range(len(images)))
    return Request(
        turns=(Turn("user", (*slots, Text(text))),),
        images=images,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        draw=draw,
        choices=choices,
    )
