"""An engine without a model, for a look at the shape of a run: replies made up from the request's key.

    Request --key--> draws --> one of the choices | a value of the schema | a few words        (marked `simulated`)

The same request gets the same reply on every machine. One in sixteen is a bad one (a refusal, a loop, a reply that was
cut, a failed call), so that every way a sample can go is walked. Nothing of it can be published or exported.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, final

from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
)
from infinity_mm.vision.images import BadImage

FINGERPRINT = "simulated: no model"
_WORDS = """
    amber bridge candle door eagle field garden harbor island jacket kettle ladder marble needle orange pillar
    quarry ribbon saddle table umbrella valley window yellow zebra anchor basket copper dragon engine forest glacier
""".split()  # noqa: SIM905
_BAD_SHARE = 1 / 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedSpec:
    """Nothing to configure, and nothing to start."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        """Ready at once."""
        yield Simulated(images)


@final
class Simulated:
    """Answers everything; its images are read, because a run has to show that they can be."""

    capabilities = Capabilities(
        images_per_prompt=1 << 16, choice_logprobs=True, seeds=True, reproducible="exact", likelihood=True
    )
    fingerprint = FINGERPRINT

    def __init__(self, images: ImageReader) -> None:
        self._images = images

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """Made up, and marked so."""
        return [self._unseen(request) or made_up(request) for request in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """Made up, and marked so."""
        return [self._unseen(scoring) or made_up_likelihood(scoring) for scoring in scorings]

    def _unseen(self, asked: Request | Scoring) -> Failure | None:
        try:
            for image in asked.images:
                self._images.read(image)
        except (BadImage, OSError) as error:
            return Failure(reason="bad_image", detail=str(error))
        return None


def made_up(request: Request) -> Reply | Failure:
    """A function of the request's key alone."""
    rng = random.Random(request.key(FINGERPRINT))
    is_bad = rng.random() < _BAD_SHARE
    num_prompt = sum(len(turn.text.split()) for turn in request.turns)
    if request.choices:
        logprobs = _logprobs(rng, len(request.choices))
        best = max(range(len(logprobs)), key=logprobs.__getitem__)
        return Reply(
            text=request.choices[best],
            prompt_tokens=num_prompt,
            completion_tokens=1,
            choice_logprobs=logprobs,
            simulated=True,
        )
    if request.schema is not None:
        text = json.dumps(_value(json.loads(request.schema), rng))
        return Reply(
            text=text[:-1] if is_bad else text, prompt_tokens=num_prompt, completion_tokens=1, simulated=True
        )
    words = " ".join(rng.choices(_WORDS, k=5))
    kind = rng.randrange(4) if is_bad else None
    if kind == 0:
        return Failure(reason="simulated", detail="a call that fails in a simulated run")
    # The question mark makes it a question where one is asked for; where not, it does no harm.
    text = {1: "I'm sorry, but I can't help with that.", 2: f"{words} " * 8}.get(
        kind or -1, f"Which {words}?"
    )
    return Reply(
        text=text,
        finish_reason="length" if kind == 3 else "stop",
        prompt_tokens=num_prompt,
        completion_tokens=len(text.split()),
        simulated=True,
    )


def made_up_likelihood(scoring: Scoring) -> Likelihood:
    """A function of the scoring's key alone."""
    rng = random.Random(scoring.key(FINGERPRINT))
    num_tokens = max(1, len(scoring.turns[-1].text.split()))
    return Likelihood(mean_logprob=-3 * rng.random(), num_tokens=num_tokens, simulated=True)


def _logprobs(rng: random.Random, number: int) -> tuple[float, ...]:
    """Mostly sure of one choice, as models are; else every expected score would be the middle one."""
    weights = [math.exp(20 * rng.random()) for _ in range(number)]
    return tuple(math.log(weight / sum(weights)) for weight in weights)


def _value(schema: Mapping[str, Any], rng: random.Random) -> Any:
    """A value of the schema, as far as the schemas of the stages go."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type", "object"):
        case "object":
            return {name: _value(part, rng) for name, part in schema.get("properties", {}).items()}
        case "array":
            least = schema.get("minItems", 0)
            number = rng.randint(least, schema.get("maxItems", least + 2))
            return [_value(schema.get("items", {"type": "string"}), rng) for _ in range(number)]
        case "integer" | "number":
            low = math.ceil(schema.get("minimum", 0))
            return rng.randint(low, math.floor(schema.get("maximum", low + 9)))
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case _:
            return " ".join(rng.choices(_WORDS, k=4))
