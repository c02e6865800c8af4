"""Tasks that a model is graded on: questions about images, each with the answers that count as right.

    data of any reader --one question an exchange--> Question --is_right(reply)--> right or wrong

A question is asked as the data would teach it: with the exchanges before it where they see each other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

from PIL import Image

from infinity_mm.data.conversation import (
    IMAGE_PLACEHOLDER,
    Conversation,
    ConversationSource,
    Message,
    Turns,
)
from infinity_mm.data.sources import build_source
from infinity_mm.errors import explain
from infinity_mm.eval.grading import GRADERS, Grading
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.vision.images import upright_rgb

Accepted = Literal["whole", "lines"]
"""What of an answer in the data counts as right: all of it, or each of its lines."""
Writer = Callable[[Conversation], tuple[Message, ...]]
"""Messages as a model family reads them: images placed, boxes in its notation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question."""

    id: str
    images: tuple[Image.Image, ...]
    """Upright."""
    turns: tuple[Turn, ...]
    """Ends with the user's."""
    accepted: tuple[str, ...]
    """Each of them is right."""


@runtime_checkable
class Task(Protocol):
    """Questions in groups that share images."""

    def __len__(self) -> int:
        """Number of groups."""
        ...

    def questions(self, index: int) -> list[Question]:
        """The questions of one group, a pure function of `index`; raises what a reader raises for a bad sample."""
        ...

    def is_right(self, reply: str, accepted: Sequence[str]) -> bool:
        """Whether the reply answers the question."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class ConversationTask:
    """Conversations, of which every answer is asked for."""

    source: ConversationSource
    write: Writer
    grading: Grading = "normalised"
    accepted: Accepted = "whole"

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.source)

    def questions(self, index: int) -> list[Question]:
        """One for every exchange."""
        conversation = self.source[index]
        images = tuple(upright_rgb(image) for image in conversation.images)
        return [
            Question(
                id=f"{conversation.id}/{number}",
                images=images[: sum(isinstance(part, ImageSlot) for turn in turns for part in turn.content)],
                turns=turns,
                accepted=tuple(answer.splitlines()) if self.accepted == "lines" else (answer,),
            )
            for number, (turns, answer) in enumerate(_asked(self.write(conversation), self.source.turns))
        ]

    def is_right(self, reply: str, accepted: Sequence[str]) -> bool:
        """As `grading` says."""
        return GRADERS[self.grading](reply, accepted)


def build_task(
    kind: str, options: Mapping[str, Any], *, write: Writer, grading: Grading, accepted: Accepted
) -> Task:
    """`windtunnel` is the held-out world with its own grader; every other kind is a reader of training data."""
    if kind != "windtunnel":
        source = build_source(kind, options)
        return ConversationTask(source=source, write=write, grading=grading, accepted=accepted)
    # Imported only when asked for: other runs need not know the wind tunnel.
    task = importlib.import_module("infinity_mm.eval.windtunnel").WindTunnelTask
    try:
        return task(**options)
    except TypeError as error:
        raise explain(
            what=f"the options of the wind tunnel's task do not fit: {error}",
            where="YAML section `tasks`, `options`",
            fix="give world_seed and num_images; see WindTunnelTask in infinity_mm/eval/windtunnel.py",
        ) from error


def _asked(messages: Sequence[Message], turns: Turns) -> Iterator[tuple[tuple[Turn, ...], str]]:
    """(the turns up to a question, its answer)."""
    first = 1 if messages[0].role == "system" else 0
    front = IMAGE_PLACEHOLDER * messages[first].text.count(IMAGE_PLACEHOLDER)
    for place in range(first, len(messages), 2):
        before = messages[: place + 1]
        if turns == "independent" and place > first:
            before = (*messages[:first], Message("user", front + messages[place].text))
        yield _typed(before), messages[place + 1].text


def _typed(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """`<image>` in a user's text becomes a slot."""
    turns: list[Turn] = []
    num_images = 0
    for message in messages:
        if message.role != "user":
            turns.append(Turn(message.role, (Text(message.text),)))
            continue
        text, *after = message.text.split(IMAGE_PLACEHOLDER)
        parts: list[Text | ImageSlot] = [Text(text)]
        for text in after:
            parts += [ImageSlot(num_images), Text(text)]
            num_images += 1
        turns.append(Turn("user", tuple(part for part in parts if part != Text(""))))
    return tuple(turns)
