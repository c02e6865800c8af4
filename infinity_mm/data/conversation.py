"""What a data source gives the trainer: images and messages, and how the messages see each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from infinity_mm.errors import explain

Role = Literal["system", "user", "assistant"]
Turns = Literal["causal", "independent"]

IMAGE_PLACEHOLDER = "<image>"
"""Marks the place of one image inside a user text; without any, the images stand before the first user text."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    text: str
    """May hold `<image>` at the places where images stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One training sample before it is encoded."""

    id: str
    images: tuple[Image.Image, ...]
    """In the order of their places; may be opened lazily, pixels are read only where they are needed."""
    messages: tuple[Message, ...]
    """An optional system message, then user and assistant in turn, ending with the assistant."""
    domain: str = "default"
    """Free label for counting and weighting."""

    @property
    def num_images(self) -> int:
        """How many places the messages need."""
        return len(self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A conversation with the sizes of its images in place of their pixels: enough to plan rows."""

    id: str
    image_sizes: tuple[tuple[int, int], ...]
    """(width, height) of each upright image, as its header says."""
    messages: tuple[Message, ...]
    """As in the conversation."""
    domain: str = "default"
    """As in the conversation."""
    problem: str | None = None
    """What is wrong with an image, where that shows already; the sizes are then missing."""

    @property
    def num_images(self) -> int:
        """How many places the messages need."""
        return len(self.image_sizes)


@runtime_checkable
class ConversationSource(Protocol):
    """A sized, random-access source of conversations that can be sent to worker processes."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever any conversation does; a resumed run is refused on another one."""
        ...

    @property
    def turns(self) -> Turns:
        """`causal`: an exchange sees all before it. `independent`: it sees the system prompt and images only,
        as if every exchange were a sample of its own that shares the encoded images."""
        ...

    def __len__(self) -> int:
        """Number of conversations."""
        ...

    def __getitem__(self, index: int) -> Conversation:
        """The conversation, a pure function of `index`."""
        ...

    def outline(self, index: int) -> Outline:
        """The same without decoding an image."""
        ...


def keep_exchanges(conversation: Conversation, num_exchanges: int) -> Conversation:
    """The first exchanges of a conversation, with the images that stand in them."""
    messages = place_images(conversation)
    first = 1 if messages[0].role == "system" else 0
    kept = messages[: first + 2 * num_exchanges]
    num_images = sum(m.text.count(IMAGE_PLACEHOLDER) for m in kept if m.role == "user")
    return replace(conversation, messages=kept, images=conversation.images[:num_images])


def place_images(conversation: Conversation | Outline) -> tuple[Message, ...]:
    """The messages with exactly one `<image>` per image: given places are kept, else all go to the front.

    Raises UserError when places and images disagree, or when the roles are out of order.
    """
    where = f"conversation {conversation.id}"
    messages = conversation.messages
    body = messages[1:] if messages and messages[0].role == "system" else messages
    roles = [message.role for message in body]
    if not body or len(body) % 2 or roles != ["user", "assistant"] * (len(body) // 2):
        raise explain(
            what=f"the roles are {[message.role for message in messages]}",
            where=where,
            fix="give an optional system message, then user and assistant in turn, ending with assistant",
        )
    num_places = sum(message.text.count(IMAGE_PLACEHOLDER) for message in messages if message.role == "user")
    if num_places == 0 and conversation.num_images:
        first = len(messages) - len(body)
        front = IMAGE_PLACEHOLDER * conversation.num_images
        with_images = Message("user", front + messages[first].text)
        return (*messages[:first], with_images, *messages[first + 1 :])
    if num_places != conversation.num_images:
        raise explain(
            what=f"{num_places} `{IMAGE_PLACEHOLDER}` places but {conversation.num_images} images",
            where=where,
            fix="write one place per image, or none at all to put all images first",
        )
    return messages
