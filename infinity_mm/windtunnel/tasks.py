"""What the nano models are trained on: exchanges about training-world images, with answers from the truth.

    scene --render--> image
    scene --task----> (prompt of the `nano` set, right reply)   several per image, each independent of the others

The prompts are rendered from the very files that synthesis uses, so a model is trained on the prompts it will see.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, final

from infinity_mm.data.conversation import Conversation, Message, Outline
from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import canonical_json, digest, rng_for
from infinity_mm.windtunnel import answers, captions, facts, questions, world
from infinity_mm.windtunnel.questions import Question
from infinity_mm.windtunnel.scene import Scene

JUDGE_SCORES = {"right": 9, "one_fact": 3, "random": 1}
"""The score a judge is taught: 9 for right, 3 for one wrong fact, 1 for an answer to another picture."""

_POOL_SCENES = 240
"""Training scenes whose questions serve as examples when asking; enough for every type."""


@final
@dataclass(frozen=True, kw_only=True)
class WindTunnelTasks:
    """A `ConversationSource`: image i is scene i of a world, its exchanges are drawn by task weight."""

    world_seed: int
    num_images: int
    exchanges_per_image: int
    tasks: dict[str, float]
    """Task -> weight; see `_TASKS`."""
    split: Literal["train", "held_out"] = "train"
    prompts: str = "nano"
    shown: Literal["image", "text"] = "image"
    """`text`: the dense caption as system message in place of the image. It teaches a small language model to answer
    about what it reads before it is asked about what it sees, which a large one brings along."""
    turns: Literal["causal", "independent"] = field(default="independent", init=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(_TASKS))
        if unknown or not self.tasks:
            raise explain(
                what=f"unknown tasks {unknown}" if unknown else "no tasks",
                where="data options of the wind tunnel (configuration)",
                fix=f"use some of {', '.join(_TASKS)}",
            )

    @property
    def fingerprint(self) -> str:
        """Changes when the data would."""
        return digest(
            "windtunnel-tasks",
            canonical_json(
                [
                    self.world_seed,
                    self.num_images,
                    self.exchanges_per_image,
                    self.tasks,
                    self.split,
                    self.prompts,
                    self.shown,
                ]
            ),
        )

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Conversation:
        scene = self._scene(index)
        return Conversation(
            id=f"windtunnel-{self.world_seed}-{index}",
            images=(world.render(scene),) if self.shown == "image" else (),
            messages=self._messages(scene, index),
            domain=scene.family,
        )

    def outline(self, index: int) -> Outline:
        """The exchanges and the size of the picture, which is not drawn."""
        scene = self._scene(index)
        return Outline(
            id=f"windtunnel-{self.world_seed}-{index}",
            image_sizes=((scene.width, scene.height),) if self.shown == "image" else (),
            messages=self._messages(scene, index),
            domain=scene.family,
        )

    def _scene(self, index: int) -> Scene:
        return world.sample_scene(world_seed=self.world_seed, index=index, split=self.split)

    def _messages(self, scene: Scene, index: int) -> tuple[Message, ...]:
        rng = rng_for(self.world_seed, "windtunnel-tasks", str(index))
        prompts = _prompt_set(self.prompts)
        names = _draw(self.tasks, self.exchanges_per_image, rng)
        asked = questions.questions(scene, rng)
        messages: list[Message] = []
        if self.shown == "text":
            messages.append(Message("system", captions.dense(scene, rng)))
        for position, name in enumerate(names):
            exchange = _TASKS[name](scene, asked, position, prompts, rng)
            if exchange is not None:
                messages += [Message("user", exchange[0]), Message("assistant", exchange[1])]
        return tuple(messages)


Exchange = tuple[str, str] | None
Task = Callable[[Scene, list[Question], int, PromptSet, random.Random], Exchange]


def _draw(weights: dict[str, float], n: int, rng: random.Random) -> list[str]:
    """`n` task names with stratified counts: expected shares are met on every image as far as possible."""
    names, total = list(weights), sum(weights.values())
    offset, picked, cumulative = rng.random(), [], 0.0
    for name in names:
        start = cumulative
        cumulative += weights[name] / total * n
        picked += [name] * sum(1 for k in range(n) if start <= k + offset < cumulative)
    rng.shuffle(picked)
    return picked


def _caption_dense(
    scene: Scene, _q: list[Question], _i: int, prompts: PromptSet, rng: random.Random
) -> Exchange:
    return prompts.render("caption_dense"), captions.dense(scene, rng)


def _caption_short(
    scene: Scene, _q: list[Question], _i: int, prompts: PromptSet, rng: random.Random
) -> Exchange:
    return prompts.render("caption_short"), captions.short(scene, rng)


def _caption_facts(
    scene: Scene, _q: list[Question], _i: int, prompts: PromptSet, rng: random.Random
) -> Exchange:
    return prompts.render("caption_facts"), facts.facts(scene, rng)


def _answer(style: answers.Style) -> Task:
    def task(scene: Scene, asked: list[Question], i: int, prompts: PromptSet, rng: random.Random) -> Exchange:
        question = asked[i % len(asked)]
        prompt = prompts.render(f"answer_{style}", question=question.text)
        return prompt, answers.answer(scene, question, style, rng)

    return task


def _ask(scene: Scene, asked: list[Question], i: int, prompts: PromptSet, rng: random.Random) -> Exchange:
    question = asked[i % len(asked)]
    examples = rng.sample(_example_pool()[question.type], 2)
    prompt = prompts.render("ask", type=question.type, example_1=examples[0], example_2=examples[1])
    return prompt, question.text


def _check(scene: Scene, asked: list[Question], i: int, prompts: PromptSet, rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        return prompts.render("check", question=asked[i % len(asked)].text), "yes"
    bad = questions.bad_questions(scene, rng, 1)
    return (prompts.render("check", question=bad[0].text), "no") if bad else None


def _candidate(scene: Scene, question: Question, rng: random.Random) -> tuple[str, str] | None:
    """(level, text) of a right or a wrong answer in a random style."""
    style = rng.choice(answers.STYLES)
    level = rng.choices(("right", "one_fact", "random"), (0.5, 0.35, 0.15))[0]
    if level == "right":
        return level, answers.answer(scene, question, style, rng)
    wrong = answers.wrong_answer(scene, question, style, level, rng)
    return None if wrong is None else (level, wrong)


def _judge(scene: Scene, asked: list[Question], i: int, prompts: PromptSet, rng: random.Random) -> Exchange:
    question = asked[i % len(asked)]
    candidate = _candidate(scene, question, rng)
    if candidate is None:
        return None
    level, text = candidate
    return prompts.render("judge", question=question.text, answer=text), str(JUDGE_SCORES[level])


def _rewrite(scene: Scene, asked: list[Question], i: int, prompts: PromptSet, rng: random.Random) -> Exchange:
    question = asked[i % len(asked)]
    style = rng.choice(answers.STYLES)
    right = answers.answer(scene, question, style, rng)
    level = rng.choices(("right", "one_fact", "random"), (0.15, 0.6, 0.25))[0]
    shown = right if level == "right" else answers.wrong_answer(scene, question, style, level, rng)
    if shown is None:
        return None
    return prompts.render("rewrite", question=question.text, answer=shown), right


_TASKS: dict[str, Task] = {
    "caption_dense": _caption_dense,
    "caption_short": _caption_short,
    "caption_facts": _caption_facts,
    "answer_short": _answer("short"),
    "answer_brief": _answer("brief"),
    "answer_detailed": _answer("detailed"),
    "ask": _ask,
    "check": _check,
    "judge": _judge,
    "rewrite": _rewrite,
}


@lru_cache(maxsize=4)
def _prompt_set(name: str) -> PromptSet:
    return PromptSet.load(name)


@lru_cache(maxsize=1)
def _example_pool() -> dict[str, list[str]]:
    """Question texts by type, from training scenes of a world of its own."""
    pool: dict[str, dict[str, None]] = {}
    for index in range(_POOL_SCENES):
        scene = world.sample_scene(world_seed=7, index=index, split="train")
        for question in questions.questions(scene, rng_for(7, "example-pool", str(index))):
            pool.setdefault(question.type, {})[question.text] = None
    return {type_: list(texts) for type_, texts in pool.items()}


def corpus(*, world_seed: int, num_images: int) -> list[str]:
    """Texts for training a tokenizer: every task's prompts and replies on training scenes."""
    source = WindTunnelTasks(
        world_seed=world_seed, num_images=num_images, exchanges_per_image=12, tasks=dict.fromkeys(_TASKS, 1.0)
    )
    return [message.text for index in range(num_images) for message in source[index].messages]
