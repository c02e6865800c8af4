"""Stock families score given answers: a batch of different lengths says what each conversation alone says."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import pytest
from tiny_families import NAMES, picture, write_checkpoint

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
def test_padding_changes_no_likelihood(name: str, tmp_path: Path) -> None:
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
