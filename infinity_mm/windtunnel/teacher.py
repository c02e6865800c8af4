"""What a teacher is worth on held-out scenes: its questions, its judging (with a blank-image control), its rewrites.

Every figure is against the truth of the scenes; none of it ever enters a data set.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from infinity_mm.engines.base import Engine, EngineSpec, Failure, Reply, Request
from infinity_mm.eval.memory_images import MemoryImages
from infinity_mm.eval.metrics import auc
from infinity_mm.eval.windtunnel import Item, held_out_items, request_for
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ImageRef, rng_for
from infinity_mm.windtunnel import answers, questions, truth

SCORES = tuple(str(score) for score in range(1, 11))
"""The choices a judge has."""


def measure_teacher(
    spec: EngineSpec,
    images: MemoryImages,
    *,
    world_seed: int,
    num_images: int = 200,
    questions_per_image: int = 3,
    prompts: str = "nano",
) -> dict[str, Any]:
    """Measure asking, checking, answering in three styles, judging and rewriting; see the keys of the result."""
    items = held_out_items(
        images, world_seed=world_seed, num_images=num_images, questions_per_image=questions_per_image
    )
    prompt_set = PromptSet.load(prompts)

    async def measure() -> dict[str, Any]:
        async with spec.open(images) as engine:
            return {
                "world_seed": world_seed,
                "num_images": num_images,
                "num_questions": len(items),
                "ask": await _measure_ask(engine, prompt_set, items, world_seed),
                "check_auc": await _measure_check(engine, prompt_set, items, world_seed),
                **await _measure_judge(engine, prompt_set, items, world_seed),
            }

    return asyncio.run(measure())


async def _measure_ask(engine: Engine, prompts: PromptSet, items: list[Item], seed: int) -> dict[str, float]:
    examples: dict[str, list[str]] = {}
    for item in items:
        examples.setdefault(item.question.type, []).append(item.question.text)
    requests = []
    for number, item in enumerate(items):
        pool = examples[item.question.type]
        rng = rng_for(seed, "ask-examples", str(number))
        shown = {"example_1": rng.choice(pool), "example_2": rng.choice(pool)}
        prompt = prompts.render("ask", type=item.question.type, **shown)
        requests.append(
            request_for(prompts, item.image, prompt, max_new_tokens=48, temperature=0.7, seed=number)
        )
    replies = await engine.generate(requests)
    answerable = same_type = both = 0
    for item, reply in zip(items, replies, strict=True):
        verdict = truth.ask(item.scene, reply.text) if isinstance(reply, Reply) else None
        is_answerable = isinstance(verdict, truth.Accepted)
        query = questions.parse(reply.text) if isinstance(reply, Reply) else None
        is_type = query is not None and query.type == item.question.type
        answerable += is_answerable
        same_type += is_type
        both += is_answerable and is_type
    n = len(items)
    return {"answerable": answerable / n, "asked_type": same_type / n, "answerable_and_asked_type": both / n}


async def _measure_check(engine: Engine, prompts: PromptSet, items: list[Item], seed: int) -> float | None:
    good: list[Request] = []
    bad: list[Request] = []
    for number, item in enumerate(items):
        good.append(_check(prompts, item.image, item.question.text))
        for question in questions.bad_questions(item.scene, rng_for(seed, "bad-question", str(number)), 1):
            bad.append(_check(prompts, item.image, question.text))
    replies = await engine.generate([*good, *bad])
    chance = [_first_choice(reply) for reply in replies]
    return auc(_known(chance[: len(good)]), _known(chance[len(good) :]))


async def _measure_judge(engine: Engine, prompts: PromptSet, items: list[Item], seed: int) -> dict[str, Any]:
    """AUC of the expected score, right answers against each kind of wrong one, and against the model's own errors."""
    triples: list[tuple[Item, str, str]] = []
    for number, item in enumerate(items):
        rng = rng_for(seed, "judge", str(number))
        style = rng.choice(answers.STYLES)
        triples.append((item, "right", answers.answer(item.scene, item.question, style, rng)))
        for level in ("random", "one_fact"):
            wrong = answers.wrong_answer(item.scene, item.question, style, level, rng)
            if wrong is not None:
                triples.append((item, level, wrong))
    own, accuracy = await _own_answers(engine, prompts, items)
    seen = await _expected(engine, prompts, triples, blank=False)
    blank = await _expected(engine, prompts, triples, blank=True)
    mine = await _expected(engine, prompts, own, blank=False)
    return {
        "answer_accuracy": accuracy,
        "judge_auc_random": _auc_of(triples, seen, "right", "random"),
        "judge_auc_one_fact": _auc_of(triples, seen, "right", "one_fact"),
        "judge_auc_own_errors": _auc_of(own, mine, "own_right", "own_wrong"),
        "judge_auc_random_blank_image": _auc_of(triples, blank, "right", "random"),
        "judge_auc_one_fact_blank_image": _auc_of(triples, blank, "right", "one_fact"),
        "kept_at_8": _kept(own, mine, 8.0),
    }


async def _own_answers(
    engine: Engine, prompts: PromptSet, items: list[Item]
) -> tuple[list[tuple[Item, str, str]], dict[str, float]]:
    rows: list[tuple[Item, str, str]] = []
    accuracy: dict[str, float] = {}
    for style in answers.STYLES:
        replies = await engine.generate(
            [
                request_for(
                    prompts,
                    item.image,
                    prompts.render(f"answer_{style}", question=item.question.text),
                    max_new_tokens=96,
                )
                for item in items
            ]
        )
        right = 0
        for item, reply in zip(items, replies, strict=True):
            if isinstance(reply, Failure):
                continue
            is_right = truth.grade(item.scene, item.question.text, reply.text) == "right"
            right += is_right
            rows.append((item, "own_right" if is_right else "own_wrong", reply.text))
        accuracy[style] = right / len(items)
    return rows, accuracy


async def _expected(
    engine: Engine, prompts: PromptSet, rows: Sequence[tuple[Item, str, str]], *, blank: bool
) -> list[float | None]:
    requests = [
        request_for(
            prompts,
            item.blank if blank else item.image,
            prompts.render("judge", question=item.question.text, answer=text),
            max_new_tokens=4,
            choices=SCORES,
        )
        for item, _, text in rows
    ]
    return [_expected_score(reply) for reply in await engine.generate(requests)]


def _expected_score(reply: Reply | Failure) -> float | None:
    if isinstance(reply, Failure) or reply.choice_logprobs is None:
        return None
    return sum(
        int(score) * math.exp(logprob) for score, logprob in zip(SCORES, reply.choice_logprobs, strict=True)
    )


def _check(prompts: PromptSet, image: ImageRef, question: str) -> Request:
    prompt = prompts.render("check", question=question)
    return request_for(prompts, image, prompt, max_new_tokens=4, choices=("yes", "no"))


def _first_choice(reply: Reply | Failure) -> float | None:
    if isinstance(reply, Failure) or reply.choice_logprobs is None:
        return None
    return math.exp(reply.choice_logprobs[0])


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _auc_of(
    rows: Sequence[tuple[Item, str, str]], scores: Sequence[float | None], positive: str, negative: str
) -> float | None:
    def of(kind: str) -> list[float]:
        return _known([score for (_, k, _), score in zip(rows, scores, strict=True) if k == kind])

    return auc(of(positive), of(negative))


def _kept(
    rows: Sequence[tuple[Item, str, str]], scores: Sequence[float | None], keep_at: float
) -> dict[str, float]:
    """What a cut at `keep_at` would keep of the model's own answers: share right, and share of the right ones."""
    kept = [kind for (_, kind, _), score in zip(rows, scores, strict=True) if (score or 0.0) >= keep_at]
    num_right = sum(kind == "own_right" for _, kind, _ in rows)
    right_kept = sum(kind == "own_right" for kind in kept)
    return {
        "right_share": right_kept / len(kept) if kept else 0.0,
        "right_answers_kept_share": right_kept / num_right if num_right else 0.0,
    }
