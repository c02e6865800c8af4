"""What every reader finds on disk for one sample, before an image is looked at.

row of a file --reader--> Stored --image_size--> Outline
                                 --decode_image--> Conversation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinity_mm.data.conversation import IMAGE_PLACEHOLDER, Conversation, Message, Outline
from infinity_mm.formats.base import role_of
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.vision.images import BadImage, decode_image, image_size

MISSING_IMAGE = "missing_image"
"""Reason of a sample whose image file is not there: it may come to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One sample with its images as files."""

    id: str
    images: tuple[bytes | Path, ...]
    """Encoded images, or where they lie."""
    messages: tuple[Message, ...]
    """As written."""
    domain: str = "default"
    """Free label for counting and weighting."""

    def outline(self) -> Outline:
        """Sizes from headers."""
        sizes: tuple[tuple[int, int], ...] = ()
        problem = None
        try:
            sizes = tuple(image_size(_checked(image)) for image in self.images)
        except BadImage as error:
            problem = str(error)
        return Outline(
            id=self.id, image_sizes=sizes, messages=self.messages, domain=self.domain, problem=problem
        )

    def conversation(self) -> Conversation:
        """Images decoded; raises BadImage."""
        images = tuple(decode_image(_bytes(image)) for image in self.images)
        return Conversation(id=self.id, images=images, messages=self.messages, domain=self.domain)


def _checked(image: bytes | Path) -> bytes | Path:
    """A file that is not there is a fact about the sample, any other trouble with the disk is not."""
    if isinstance(image, Path) and not image.is_file():
        raise BadImage(MISSING_IMAGE, str(image))
    return image


def _bytes(image: bytes | Path) -> bytes:
    image = _checked(image)
    return image if isinstance(image, bytes) else image.read_bytes()


def chat_messages(rows: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages from role and content (text, or a list of typed parts), or from LLaVA's `from` and `value`.

    Raises BadRow for anything else.
    """
    messages: list[Message] = []
    for row in rows:
        content = row.get("content", row.get("value"))
        if isinstance(content, list):
            content = "".join(_part(part) for part in content)
        if not isinstance(content, str):
            raise BadRow("content_missing", f"a {type(content).__name__}")
        messages.append(Message(role_of(row.get("role", row.get("from"))), _tight(content)))
    return tuple(messages)


def _part(part: Mapping[str, Any]) -> str:
    match part.get("type"):
        case "image":
            return IMAGE_PLACEHOLDER
        case "text":
            return part["text"]
    raise BadRow("unknown_part_type", f"{part.get('type')!r}"[:200])


def _tight(text: str) -> str:
    """LLaVA writes "<image>\\n"; what stands between an image and the text is for the model's chat template to say."""
    return text.replace(f"{IMAGE_PLACEHOLDER}\n", IMAGE_PLACEHOLDER)
