"""A model in memory is asked a task's questions, and the same ones about blank images.

Task --questions--> requests, requests on grey --backend, in batches--> replies --is_right--> Answered --> accuracies
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

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


def accuracies(answered: Sequence[Answered]) -> dict[str, float]:
    """What a run logs of a task."""
    number = len(answered)
    return {
        "accuracy": sum(one.right for one in answered) / max(number, 1),
        "accuracy_blank_image": sum(one.right_blank_image for one in answered) / max(number, 1),
        "num_questions": number,
        "failures": sum(one.problem is not None for one in answered),
    }


@final
@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks one model, greedily."""

    backend: Backend
    images: MemoryImages
    """Where the backend reads its images; holds those of one batch."""
    max_new_tokens: int
    batch: int
    """Questions answered together."""

    def ask(self, task: Task, indices: Iterable[int]) -> Iterator[Answered]:
        """The questions of the groups `indices`."""
        waiting: list[Question] = []
        for index in indices:
            try:
                waiting += task.questions(index)
            except BAD_SAMPLE as error:
                yield Answered(id=f"number {index}", problem=one_line(error))
            while len(waiting) >= self.batch:
                yield from self._graded(task, waiting[: self.batch])
                waiting = waiting[self.batch :]
        yield from self._graded(task, waiting)

    def _graded(self, task: Task, questions: Sequence[Question]) -> Iterator[Answered]:
        """One batch."""
        self.images.data.clear()
        seen = self._replies(questions)
        blank = self._replies([replace(q, images=tuple(map(blank_like, q.images))) for q in questions])
        for question, reply, reply_blank in zip(questions, seen, blank, strict=True):
            accepted = question.accepted
            yield Answered(
                id=question.id,
                accepted=accepted,
                reply=_text(reply),
                reply_blank_image=_text(reply_blank),
                right=isinstance(reply, Reply) and task.is_right(reply.text, accepted),
                right_blank_image=isinstance(reply_blank, Reply)
                and task.is_right(reply_blank.text, accepted),
                problem=reply.detail if isinstance(reply, Failure) else None,
            )

    def _replies(self, questions: Sequence[Question]) -> list[Reply | Failure]:
        """One answer each; a question that cannot be asked is a failure of its own."""
        prompts: dict[int, Any] = {}
        found: dict[int, Reply | Failure] = {}
        for number, question in enumerate(questions):
            request = Request(
                turns=question.turns,
                images=tuple(self.images.add_picture(picture) for picture in question.images),
                max_new_tokens=self.max_new_tokens,
            )
            try:
                prompts[number] = self.backend.prepare(request)
            except Refused as refused:
                found[number] = refused.failure
            except (BadImage, UserError) as error:
                found[number] = Failure(reason="bad_request", detail=one_line(error))
        if prompts:
            found |= zip(prompts, self.backend.answer(list(prompts.values())), strict=True)
        return [found[number] for number in range(len(questions))]


def _text(reply: Reply | Failure) -> str:
    return reply.text if isinstance(reply, Reply) else ""
