"""From data to questions, and from replies to figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from PIL import Image

from infinity_mm.data.conversation import Conversation, Message, Outline, Turns, place_images
from infinity_mm.engines.base import ImageReader, Reply, Request
from infinity_mm.engines.model_files import SHIPPED
from infinity_mm.engines.prompting import Refused
from infinity_mm.engines.transformers import TransformersSpec, backend_for
from infinity_mm.errors import UserError
from infinity_mm.eval.asking import Answered, Asker, accuracies
from infinity_mm.eval.memory_images import MemoryImages
from infinity_mm.eval.tasks import ConversationTask, build_task
from infinity_mm.eval.windtunnel import evaluate_windtunnel
from infinity_mm.families import INFINITY_MM
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.vision.images import BadImage, decode_image

RED, BLUE = Image.new("RGB", (6, 4), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
TALK = Conversation(
    id="a",
    images=(RED, BLUE),
    messages=(
        Message("system", "Be brief."),
        Message("user", "<image>Which color?"),
        Message("assistant", "red"),
        Message("user", "And this? <image>"),
        Message("assistant", "blue\nnavy"),
    ),
)


@dataclass
class Listed:
    """A source of these conversations; None is one that cannot be read."""

    conversations: Sequence[Conversation | None]
    turns: Turns = "causal"
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Conversation:
        found = self.conversations[index]
        if found is None:
            raise BadImage("truncated")
        return found

    def outline(self, index: int) -> Outline:
        raise NotImplementedError


@dataclass
class Looks:
    """Answers with the color of the last image, and refuses long requests."""

    images: ImageReader
    longest: int = 99

    def prepare(self, request: Request) -> str:
        if len(request.turns) > self.longest:
            raise Refused("too_long", "a long talk")
        picture = decode_image(self.images.read(request.images[-1]))
        return {(255, 0, 0): "Red.", (0, 0, 255): "Blue."}.get(picture.getpixel((0, 0)), "red")  # type: ignore[call-overload]

    def answer(self, prompts: Sequence[Any]) -> list[Reply]:
        return [Reply(text=text) for text in prompts]


def task(*conversations: Conversation | None, turns: Turns = "causal", **keys: Any) -> ConversationTask:
    return ConversationTask(source=Listed(conversations, turns), write=place_images, **keys)


def ask(of: ConversationTask, longest: int = 99, batch: int = 2) -> list[Answered]:
    images = MemoryImages()
    asker = Asker(backend=Looks(images, longest), images=images, max_new_tokens=8, batch=batch)
    return list(asker.ask(of, range(len(of))))


def test_every_answer_is_asked_for_after_what_stands_before_it() -> None:
    first, second = task(TALK).questions(0)
    system, question = (
        Turn("system", (Text("Be brief."),)),
        Turn("user", (ImageSlot(0), Text("Which color?"))),
    )
    assert (first.id, first.turns, first.accepted) == ("a/0", (system, question), ("red",))
    assert [image.size for image in first.images] == [(6, 4)]
    answer, last = Turn("assistant", (Text("red"),)), Turn("user", (Text("And this? "), ImageSlot(1)))
    assert second.turns == (system, question, answer, last)
    assert [image.size for image in second.images] == [(6, 4), (8, 8)]
    assert second.accepted == ("blue\nnavy",)


def test_independent_exchanges_share_system_prompt_and_images_alone() -> None:
    texts = ("<image>One?", "1", "Two?", "2")
    messages = tuple(Message(role, text) for role, text in zip(("user", "assistant") * 2, texts))  # type: ignore[arg-type]
    first, second = task(replace(TALK, images=(RED,), messages=messages), turns="independent").questions(0)
    assert first.turns == (Turn("user", (ImageSlot(0), Text("One?"))),)
    assert second.turns == (Turn("user", (ImageSlot(0), Text("Two?"))),)
    assert second.images == (RED,)


def test_replies_are_graded_beside_those_about_grey_images() -> None:
    answered = ask(task(TALK, accepted="lines"), batch=1)
    assert answered == [
        Answered(id="a/0", accepted=("red",), reply="Red.", reply_blank_image="red", right=True,
                 right_blank_image=True),
        Answered(id="a/1", accepted=("blue", "navy"), reply="Blue.", reply_blank_image="red", right=True),
    ]  # fmt: skip
    assert accuracies(answered) == {
        "accuracy": 1.0, "accuracy_blank_image": 0.5, "num_questions": 2, "failures": 0,
    }  # fmt: skip
    assert [one.right for one in ask(task(TALK, grading="exact"))] == [False, False]


def test_what_cannot_be_read_or_asked_counts_as_wrong_with_its_reason() -> None:
    unread, first, second = ask(task(None, TALK), longest=2)
    assert (unread.id, unread.right, unread.problem) == ("number 0", False, "truncated")
    assert (first.right, first.problem) == (True, None)
    assert (second.right, second.problem) == (False, "a long talk")
    assert accuracies([unread, first, second])["failures"] == 2


def test_the_wind_tunnel_in_a_run_is_the_one_of_its_evaluation() -> None:
    spec = TransformersSpec(model="nano-teacher", threads=1)
    found = evaluate_windtunnel(spec, MemoryImages(), world_seed=11, num_images=4)
    model, processor = INFINITY_MM.load(SHIPPED["nano-teacher"])
    images = MemoryImages()
    backend = backend_for(model.eval(), processor, images, cache_bytes=1 << 24)
    options = {"world_seed": 11, "num_images": 4}
    world = build_task("windtunnel", options, write=place_images, grading="exact", accepted="whole")
    with torch.no_grad():
        asker = Asker(backend=backend, images=images, max_new_tokens=24, batch=5)
        answered = list(asker.ask(world, range(len(world))))
    same = ("accuracy", "accuracy_blank_image", "num_questions", "failures")
    assert accuracies(answered) == pytest.approx({key: found[key] for key in same}, abs=1e-4)
    assert found["accuracy"] > found["accuracy_blank_image"]
    with pytest.raises(UserError, match="do not fit"):
        build_task("windtunnel", {"tasks": {}}, write=place_images, grading="exact", accepted="whole")
