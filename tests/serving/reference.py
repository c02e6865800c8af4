"""What transformers says to the same chats: greedy tokens and their log-probabilities, one forward pass a token."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor

NUM_TOKENS = 24
TOP = 5
ORIENTATION = 0x0112
"""EXIF tag."""


@dataclass(frozen=True)
class Case:
    """One chat: pictures first, then a question."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) of the pictures, as stored."""
    question: str
    turned: bool = False
    """Whether the pictures carry an EXIF rotation."""

    def files(self) -> list[bytes]:
        """The pictures as PNG files."""
        return [_png(size, number, turned=self.turned) for number, size in enumerate(self.sizes)]

    def body(self, model: str) -> dict[str, Any]:
        """What is posted to /v1/chat/completions; the end token does not end the reply."""
        uris = ["data:image/png;base64," + base64.b64encode(data).decode() for data in self.files()]
        images = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        content = [*images, {"type": "text", "text": self.question}]
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "logprobs": True,
            "top_logprobs": TOP,
            "return_tokens_as_token_ids": True,
        }


CASES = {
    "no image": Case((), "Name a color."),
    "one unsliced": Case(((60, 64),), "What color is the circle?"),
    "one sliced": Case(((200, 120),), "Describe the picture."),
    "one sliced, turned by EXIF": Case(((200, 90),), "Describe the picture.", turned=True),
    "two of different grids": Case(((64, 48), (130, 220)), "How many circles are there?"),
    "two of the same grid": Case(((160, 80), (160, 80)), "What color is the square?"),
}


@dataclass(frozen=True)
class Said:
    """A reply, token by token."""

    prompt_tokens: int
    ids: list[int]
    logprobs: list[float]
    likely: list[dict[int, float]]
    """Token -> log-probability at each place: of all tokens, or of the most likely ones."""


class Reference:
    """A checkpoint in transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        self.processor = InfinityMMProcessor.from_pretrained(folder)
        self.model = InfinityMMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def say(self, case: Case) -> Said:
        """The greedy reply; every token from a whole forward pass without a cache."""
        content = [{"type": "image"} for _ in case.sizes] + [{"type": "text", "text": case.question}]
        chat: Any = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        images = [Image.open(io.BytesIO(data)) for data in case.files()]
        inputs: dict[str, Any] = dict(
            self.processor(images=images or None, text=[str(text)], return_tensors="pt")
        )
        inputs.pop("attention_mask")
        ids = inputs.pop("input_ids")
        num_prompt = ids.shape[1]
        logprobs, likely = [], []
        for _ in range(NUM_TOKENS):
            with torch.no_grad():
                logits: torch.Tensor = self.model(input_ids=ids, **inputs).logits[0, -1]
            scores = logits.double().log_softmax(-1)
            likely.append(dict(enumerate(scores.tolist())))
            best = scores.argmax()
            logprobs.append(float(scores[best]))
            ids = torch.cat([ids, best.view(1, 1)], dim=1)
        return Said(
            prompt_tokens=num_prompt, ids=ids[0, num_prompt:].tolist(), logprobs=logprobs, likely=likely
        )

    def text(self, ids: list[int]) -> str:
        """What a server makes of tokens: up to the end token, without special ones."""
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        kept = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
        return str(self.processor.tokenizer.decode(kept, skip_special_tokens=True)).strip()


def read_said(reply: dict[str, Any]) -> Said:
    """The same from a server's JSON."""
    content = reply["choices"][0]["logprobs"]["content"]
    return Said(
        prompt_tokens=reply["usage"]["prompt_tokens"],
        ids=[_token_id(place["token"]) for place in content],
        logprobs=[place["logprob"] for place in content],
        likely=[
            {_token_id(each["token"]): each["logprob"] for each in place["top_logprobs"]} for place in content
        ],
    )


def _token_id(text: str) -> int:
    """`token_id:17` -> 17."""
    return int(text.removeprefix("token_id:"))


def _png(size: tuple[int, int], number: int, *, turned: bool) -> bytes:
    width, height = size
    picture = Image.new("RGB", size, (240, 240 - 40 * number, 200))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width // 8, height // 8, width // 2, height // 2), fill=(200, 30 + 90 * number, 40))
    draw.rectangle((width // 2, height // 2, width - 4, height - 4), fill=(30, 60, 60 + 90 * number))
    exif = Image.Exif()
    if turned:
        exif[ORIENTATION] = 6
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    return file.getvalue()
