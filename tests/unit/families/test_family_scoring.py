"""Stock families score given answers as their templates write them, in a batch as alone."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import NAMES, picture, write_checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor

from infinity_mm.engines.base import Failure, Likelihood, Scoring
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn


class Pictures:
    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def add(self, seed: int, width: int, height: int) -> ImageRef:
        buffer = io.BytesIO()
        picture(seed, width, height).save(buffer, format="PNG")
        sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.data[sha256] = buffer.getvalue()
        return ImageRef(sha256=sha256, uri="memory", width=width, height=height)

    def read(self, image: ImageRef) -> bytes:
        return self.data[image.sha256]


def saw(image: ImageRef, question: str, answer: str) -> Scoring:
    user = Turn("user", (ImageSlot(0), Text(question)))
    return Scoring(turns=(user, Turn("assistant", (Text(answer),))), images=(image,))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_scored_where_the_template_puts_it_and_padding_changes_nothing(
    name: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(name, tmp_path)
    pictures = Pictures()
    small, large = pictures.add(0, 24, 16), pictures.add(1, 40, 48)
    scorings = [
        saw(small, "What is it?", "a dog"),
        saw(large, "What is it, and what is beside it?", "a dog and a cat beside a dog"),
        saw(small, "What?", "a cat and a dog and a cat and a dog"),
    ]

    async def score() -> list[list[Likelihood | Failure]]:
        spec = TransformersSpec(model=str(folder), threads=1, max_wait_s=0.0)
        async with spec.open(pictures) as engine:
            return [await engine.score(scorings), *[await engine.score([each]) for each in scorings]]

    together, *alone = asyncio.run(score())
    for found, (expected,) in zip(together, alone, strict=True):
        assert isinstance(found, Likelihood), found
        assert isinstance(expected, Likelihood), expected
        assert found.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-4)
        assert (found.num_tokens, found.prompt_tokens) == (expected.num_tokens, expected.prompt_tokens)
    # This one is read as a model of our own, where a scored reply opens as a new one does, without the space that its
    # template puts into past ones.
    own = name == "llava_onevision"
    for scoring, found in zip(scorings if not own else (), together):
        assert isinstance(found, Likelihood)
        text, mean = by_hand(folder, scoring, pictures, found.num_tokens)
        assert text.strip() == scoring.turns[-1].text
        assert found.mean_logprob == pytest.approx(mean, abs=1e-4)


def by_hand(folder: Path, scoring: Scoring, pictures: Pictures, num_tokens: int) -> tuple[str, float]:
    """The last tokens of the chat as its template writes it, and the mean of their log-probabilities."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    question, answer = scoring.turns[0].text, scoring.turns[1].text
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    text = processor.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    image = Image.open(io.BytesIO(pictures.read(scoring.images[0])))
    inputs = processor(text=text, images=[image], return_tensors="pt")
    with torch.no_grad():
        logprobs = model(**inputs).logits[0].double().log_softmax(-1)
    ids = inputs.input_ids[0, -num_tokens:]
    values = logprobs[-num_tokens - 1 : -1].gather(1, ids[:, None])
    return processor.tokenizer.decode(ids), float(values.mean())
