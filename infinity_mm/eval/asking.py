"""A model in memory is asked a task's questions, and the same ones about blank images.

Task --questions--> requests, requests on grey --backend, in batches--> replies --is_right--> Answered --> accuracies
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from infinity_mm.data.measure import BAD_SAMPLE, one_line
from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.engines.prompting import Refused
from infinity_mm.engines.transformers import Backend
from infinity_mm.errors import UserError
from infinity_mm.eval.memory_images import MemoryImages, blank_like
from infinity_mm.eval.tasks import Question, Task
from infinity_mm.vision.images import BadImage


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One question and what became of it."""

    id: str
    accepted: tuple[str, ...] = ()
    reply: str = ""
    reply_blank_image: str = ""
    """To the same question with every image replaced by grey of its size."""
    right: bool = False
    right_blank_image: bool = False
    problem: str | None = None
    """Why it could not be asked; it then counts as wrong."""


def ask_task(
    backend: Backend,
    images: MemoryImages,
    task: Task,
    indices: Iterable[int],
    *,
    max_new_tokens: int,
    batch: int,
) -> Iterator[Answered]:
    """Greedy answers to the questions of the groups `indices`; `images` is where `backend` reads its images."""
    waiting: list[Question] = []
    for index in indices:
        try:
            waiting += task.questions(index)
        except BAD_SAMPLE as error:
            yield Answered(id=f"number {index}", problem=one_line(error))
        if len(waiting) >= batch:
            yield from _ask(backend, images, task, waiting, max_new_tokens, batch)
            waiting = []
    yield from _ask(backend, images, task, waiting, max_new_tokens, batch)


def accuracies(answered: Sequence[Answered]) -> dict[str, float]:
    """What a run logs of a task."""
    number = len(answered)
    return {
        "accuracy": sum(one.right for one in answered) / max(number, 1),
        "accuracy_blank_image": sum(one.right_blank_image for one in answered) / max(number, 1),
        "num_questions": number,
        "failures": sum(one.problem is not None for one in answered),
    }


def _ask(
    backend: Backend,
    images: MemoryImages,
    task: Task,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch: int,
) -> Iterator[Answered]:
    for start in range(0, len(questions), batch):
        some = questions[start : start + batch]
        images.data.clear()
        seen = _replies(backend, [_request(q, q.images, images, max_new_tokens) for q in some])
        grey = [[blank_like(image) for image in q.images] for q in some]
        blank = _replies(backend, [_request(q, g, images, max_new_tokens) for q, g in zip(some, grey)])
        for question, reply, reply_blank in zip(some, seen, blank, strict=True):
            yield Answered(
                id=question.id,
                accepted=question.accepted,
                reply=_text(reply),
                reply_blank_image=_text(reply_blank),
                right=isinstance(reply, Reply) and task.is_right(reply.text, question.accepted),
                right_blank_image=isinstance(reply_blank, Reply)
                and task.is_right(reply_blank.text, question.accepted),
                problem=reply.detail if isinstance(reply, Failure) else None,
            )


def _replies(backend: Backend, requests: Sequence[Request]) -> list[Reply | Failure]:
    """One answer each; a request that cannot be asked is a failure of its own."""
    prompts: dict[int, Any] = {}
    found: dict[int, Reply | Failure] = {}
    for number, request in enumerate(requests):
        try:
            prompts[number] = backend.prepare(request)
        except Refused as refused:
            found[number] = refused.failure
        except (BadImage, UserError) as error:
            found[number] = Failure(reason="bad_request", detail=one_line(error))
    if prompts:
        found |= zip(prompts, backend.answer(list(prompts.values())), strict=True)
    return [found[number] for number in range(len(requests))]


def _request(
    question: Question, pictures: Sequence[Image.Image], images: MemoryImages, max_new_tokens: int
) -> Request:
    refs = tuple(images.add_picture(picture) for picture in pictures)
    return Request(turns=question.turns, images=refs, max_new_tokens=max_new_tokens)


def _text(reply: Reply | Failure) -> str:
    return reply.text if isinstance(reply, Reply) else ""
