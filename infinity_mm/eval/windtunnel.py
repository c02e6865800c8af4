"""Exact-answer accuracy on held-out wind-tunnel scenes, with the blind control beside it.

held-out scenes --questions--> short answers --truth.grade--> accuracy, by family and by type
the same questions on a blank image ----------------------->  what common answers alone would get
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from infinity_mm.engines.base import Engine, EngineSpec, Failure, Reply, Request
from infinity_mm.eval import tasks
from infinity_mm.eval.memory_images import MemoryImages, blank_like
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn, rng_for
from infinity_mm.windtunnel import questions, truth, world
from infinity_mm.windtunnel.questions import Question
from infinity_mm.windtunnel.scene import Scene


@dataclass(frozen=True, kw_only=True)
class Item:
    """One evaluation question."""

    scene: Scene
    image: ImageRef
    blank: ImageRef
    question: Question


def held_out_questions(
    *,
    world_seed: int,
    num_images: int,
    questions_per_image: int,
    exclude: frozenset[str] = frozenset(),
) -> list[tuple[Scene, list[Question]]]:
    """Questions on held-out scenes; the rarest types so far are taken first, so that no type dominates.

    Scenes whose content hash is in `exclude` (what a student was trained on) are passed over.
    """
    counts: dict[str, int] = {}
    asked: list[tuple[Scene, list[Question]]] = []
    scenes = (
        world.sample_scene(world_seed=world_seed, index=index, split="held_out")
        for index in itertools.count()
    )
    fresh = (scene for scene in scenes if scene.content_hash() not in exclude)
    for index, scene in enumerate(itertools.islice(fresh, num_images)):
        by_type: dict[str, Question] = {}
        for question in questions.questions(scene, rng_for(world_seed, "eval", str(index))):
            by_type.setdefault(question.type, question)
        types = sorted(by_type, key=lambda t: (counts.get(t, 0), t))[:questions_per_image]
        for type_ in types:
            counts[type_] = counts.get(type_, 0) + 1
        asked.append((scene, [by_type[type_] for type_ in types]))
    return asked


def held_out_items(
    images: MemoryImages,
    *,
    world_seed: int,
    num_images: int,
    questions_per_image: int,
    exclude: frozenset[str] = frozenset(),
) -> list[Item]:
    """`held_out_questions` with their pictures, and blank ones."""
    items: list[Item] = []
    for scene, chosen in held_out_questions(
        world_seed=world_seed, num_images=num_images, questions_per_image=questions_per_image, exclude=exclude
    ):
        picture = world.render(scene)
        image, blank = images.add_picture(picture), images.add_picture(blank_like(picture))
        items += [Item(scene=scene, image=image, blank=blank, question=question) for question in chosen]
    return items


@final
@dataclass(frozen=True, kw_only=True)
class WindTunnelTask:
    """A `Task`: the questions of `held_out_questions`, graded by the truth, so that a run logs what `eval` measures."""

    world_seed: int
    num_images: int
    questions_per_image: int = 3
    prompts: str = "nano"

    def __len__(self) -> int:
        """Number of scenes."""
        return self.num_images

    def questions(self, index: int) -> list[tasks.Question]:
        """Those on scene `index`."""
        scene, chosen = self._all[index]
        prompts = PromptSet.load(self.prompts)
        found: list[tasks.Question] = []
        for question in chosen:
            answer = truth.ask(scene, question.text)
            assert isinstance(answer, truth.Accepted), "a question of its own scene has an answer"
            prompt = prompts.render("answer_short", question=question.text)
            found.append(
                tasks.Question(
                    id=f"windtunnel-{self.world_seed}-{index}/{question.type}",
                    images=(world.render(scene),),
                    turns=question_turns(prompts, prompt),
                    accepted=answer.answers,
                )
            )
        return found

    def is_right(self, reply: str, accepted: Sequence[str]) -> bool:
        """As the oracle grades."""
        return truth.is_accepted(reply, tuple(accepted))

    @cached_property
    def _all(self) -> list[tuple[Scene, list[Question]]]:
        return held_out_questions(
            world_seed=self.world_seed,
            num_images=self.num_images,
            questions_per_image=self.questions_per_image,
        )


def question_turns(prompts: PromptSet, prompt: str) -> tuple[Turn, ...]:
    """One user turn: the image, then the prompt; with the set's system prompt if it has one."""
    system = (Turn("system", (Text(prompts.system),)),) if prompts.system else ()
    return (*system, Turn("user", (ImageSlot(0), Text(prompt))))


def request_for(
    prompts: PromptSet, image: ImageRef, prompt: str, *, max_new_tokens: int, **extra: Any
) -> Request:
    """`question_turns` about this image."""
    turns = question_turns(prompts, prompt)
    return Request(turns=turns, images=(image,), max_new_tokens=max_new_tokens, **extra)


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
