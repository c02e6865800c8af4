"""A source of small drawn conversations and a processor, for the tests of this folder."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from infinity_mm.data.conversation import Conversation, Message, Outline, Turns
from infinity_mm.model.build import ModelSpec, build_config, build_processor
from infinity_mm.model.tokenizer import build_tokenizer

SPEC = ModelSpec(
    vision_hidden=32, vision_layers=1, vision_heads=1, vision_mlp=32, patch_px=4, scale_px=16,
    text_hidden=32, text_layers=1, text_heads=1, text_kv_heads=1, text_mlp=32,
)  # fmt: skip


@cache
def processor() -> Any:
    tokenizer = build_tokenizer(["What colour is it? red green user assistant system\n"] * 3, 300)
    return build_processor(build_config(SPEC, tokenizer), tokenizer)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(*texts: str, images: int = 0, id_: str = "a", system: str | None = None) -> Conversation:
    """Questions and answers in turn."""
    roles = ["user", "assistant"] * len(texts)
    messages = [Message(role, text) for role, text in zip(roles, texts)]  # type: ignore[arg-type]
    if system is not None:
        messages.insert(0, Message("system", system))
    pictures = tuple(picture(16 + 16 * i, 16, seed=i) for i in range(images))
    return Conversation(id=id_, images=pictures, messages=tuple(messages))


def outline_of(whole: Conversation) -> Outline:
    sizes = tuple(image.size for image in whole.images)
    return Outline(id=whole.id, image_sizes=sizes, messages=whole.messages, domain=whole.domain)


@dataclass(frozen=True)
class ToySource:
    """Conversation i has i % 3 images and answers of growing length."""

    size: int = 20
    turns: Turns = "causal"

    @property
    def fingerprint(self) -> str:
        return f"toy {self.size}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        return conversation(f"What is {index}?", "red " * (1 + index % 5), images=index % 3, id_=f"s{index}")

    def outline(self, index: int) -> Outline:
        return outline_of(self[index])
