"""Exact-answer accuracy on held-out wind-tunnel scenes, with the blind control beside it.

held-out scenes --questions--> short answers --truth.grade--> accuracy, by family and by type
the same questions on a blank image ----------------------->  what common answers alone would get
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from infinity_mm.engines.base import Engine, EngineSpec, Failure, ImageReader, Reply, Request
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn, rng_for
from infinity_mm.windtunnel import questions, truth, world
from infinity_mm.windtunnel.questions import Question
from infinity_mm.windtunnel.scene import Scene

BLANK_GREY = 128
"""The blind control's color; mid-grey is zero after normalisation."""


@dataclass(kw_only=True)
class MemoryImages(ImageReader):
    """Images held in memory, by hash."""

    data: dict[str, bytes] = field(default_factory=dict)

    def add(self, encoded: bytes, width: int, height: int) -> ImageRef:
        """Keep the bytes and return a reference to them."""
        sha256 = hashlib.sha256(encoded).hexdigest()
        self.data[sha256] = encoded
        return ImageRef(sha256=sha256, uri=f"memory:{sha256}", width=width, height=height, source="memory")

    def read(self, image: ImageRef) -> bytes:
        """The bytes behind a reference made by `add`."""
        return self.data[image.sha256]

    def add_scene(self, scene: Scene) -> ImageRef:
        """Render a scene and keep it."""
        return self.add(world.png_bytes(scene), scene.width, scene.height)

    def add_blank(self, width: int, height: int) -> ImageRef:
        """A grey image of this size."""
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (BLANK_GREY,) * 3).save(buffer, format="PNG")
        return self.add(buffer.getvalue(), width, height)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One evaluation question."""

    scene: Scene
    image: ImageRef
    blank: ImageRef
    question: Question


def held_out_items(
    images: MemoryImages,
    *,
    world_seed: int,
    num_images: int,
    questions_per_image: int,
    exclude: frozenset[str] = frozenset(),
) -> list[Item]:
    """Questions on held-out scenes; the rarest types so far are taken first, so that no type dominates.

    Scenes whose content hash is in `exclude` (what a student was trained on) are passed over.
    """
    counts: dict[str, int] = {}
    items: list[Item] = []
    scenes = (
        world.sample_scene(world_seed=world_seed, index=index, split="held_out")
        for index in itertools.count()
    )
    fresh = (scene for scene in scenes if scene.content_hash() not in exclude)
    for index, scene in enumerate(itertools.islice(fresh, num_images)):
        image, blank = images.add_scene(scene), images.add_blank(scene.width, scene.height)
        by_type: dict[str, Question] = {}
        for question in questions.questions(scene, rng_for(world_seed, "eval", str(index))):
            by_type.setdefault(question.type, question)
        for type_ in sorted(by_type, key=lambda t: (counts.get(t, 0), t))[:questions_per_image]:
            counts[type_] = counts.get(type_, 0) + 1
            items.append(Item(scene=scene, image=image, blank=blank, question=by_type[type_]))
    return items


def request_for(
    prompts: PromptSet, image: ImageRef, prompt: str, *, max_new_tokens: int, **extra: Any
) -> Request:
    """One user turn: the image, then the prompt; with the set's system prompt if it has one."""
    system = (Turn("system", (Text(prompts.system),)),) if prompts.system else ()
    user = Turn("user", (ImageSlot(0), Text(prompt)))
    return Request(turns=(*system, user), images=(image,), max_new_tokens=max_new_tokens, **extra)


async def short_answers(
    engine: Engine, prompts: PromptSet, images: Sequence[ImageRef], asked: Sequence[str]
) -> list[Reply | Failure]:
    """Short answers to (image, question) pairs."""
    return await engine.generate(
        [
            request_for(prompts, image, prompts.render("answer_short", question=question), max_new_tokens=24)
            for image, question in zip(images, asked, strict=True)
        ]
    )


def evaluate_windtunnel(
    spec: EngineSpec,
    images: MemoryImages,
    *,
    world_seed: int,
    num_images: int = 200,
    questions_per_image: int = 3,
    prompts: str = "nano",
    exclude: frozenset[str] = frozenset(),
    blank_only: bool = False,
) -> dict[str, Any]:
    """Accuracy of a model on the held-out world `world_seed`.

    Returns `accuracy`, `accuracy_blank_image`, `by_family`, `by_type`, `num_questions`, `failures`. With
    `blank_only`, `accuracy` is left out (for a model that is only ever shown blank images).
    """
    items = held_out_items(
        images,
        world_seed=world_seed,
        num_images=num_images,
        questions_per_image=questions_per_image,
        exclude=exclude,
    )
    prompt_set = PromptSet.load(prompts)

    async def ask_both() -> tuple[list[Reply | Failure], list[Reply | Failure]]:
        async with spec.open(images) as engine:
            asked = [item.question.text for item in items]
            blank = await short_answers(engine, prompt_set, [item.blank for item in items], asked)
            if blank_only:
                return blank, blank
            return await short_answers(engine, prompt_set, [item.image for item in items], asked), blank

    seen, blank = asyncio.run(ask_both())
    right = [_is_right(item, reply) for item, reply in zip(items, seen, strict=True)]
    right_blank = [_is_right(item, reply) for item, reply in zip(items, blank, strict=True)]
    result: dict[str, Any] = {
        "task": "windtunnel",
        "world_seed": world_seed,
        "num_images": num_images,
        "num_questions": len(items),
        "failures": sum(isinstance(reply, Failure) for reply in seen),
        "accuracy": _mean(right),
        "accuracy_blank_image": _mean(right_blank),
        "by_family": _grouped([item.scene.family for item in items], right, right_blank),
        "by_type": _grouped([item.question.type for item in items], right, right_blank),
    }
    if blank_only:
        del result["accuracy"]
    return result


def _is_right(item: Item, reply: Reply | Failure) -> bool:
    if isinstance(reply, Failure):
        return False
    return truth.grade(item.scene, item.question.text, reply.text) == "right"


def _mean(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def _grouped(
    keys: Sequence[str], right: Sequence[bool], blank: Sequence[bool]
) -> dict[str, dict[str, float]]:
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for key, a, b in zip(keys, right, blank, strict=True):
        groups.setdefault(key, []).append((a, b))
    return {
        key: {
            "accuracy": _mean([a for a, _ in rows]),
            "accuracy_blank_image": _mean([b for _, b in rows]),
            "num_questions": len(rows),
        }
        for key, rows in sorted(groups.items())
    }
