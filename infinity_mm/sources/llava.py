"""LLaVA JSON and JSONL: one item per row, and every faulty row listed with its own reason.

file --rows, a broken one does not hide the next--> row --checks--> item with image path and turns
                                                          \\------> item with a problem
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from infinity_mm.record import ImageSlot, Part, Role, Text, Turn
from infinity_mm.sources.base import SourceItem, read_uri
from infinity_mm.sources.json_rows import BadRow, Broken, check_unicode, image_path, json_rows

PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@final
@dataclass(frozen=True, kw_only=True)
class LlavaSource:
    """Rows of `id`, `image`, `conversations`, with images below one folder."""

    name: str
    path: str
    """Absolute path of the JSON or JSONL file."""
    image_root: str
    """Absolute path of the folder that `image` is relative to; nothing outside it is read."""
    licence: str = "unknown"
    use_conversations: bool = True
    """False takes only the images, and accepts rows whose conversation is faulty."""
    max_bytes: int = 256 << 20
    """Larger image files are not read."""

    def items(self) -> Iterator[SourceItem]:
        """All rows, in file order."""
        root = os.path.realpath(self.image_root)
        seen: dict[str, int] = {}
        for number, row in enumerate(json_rows(self.path)):
            uri, turns, problem, detail = None, (), None, ""
            try:
                uri, turns = self._check(row, number, seen, root)
            except BadRow as bad:
                problem, detail = bad.args
            yield SourceItem(
                key=f"{number:09d}",
                source=self.name,
                licence=self.licence,
                uri=uri,
                turns=turns,
                problem=problem,
                detail=detail,
            )

    def read(self, item: SourceItem) -> bytes:
        """The image file's bytes."""
        assert item.uri is not None
        return read_uri(item.uri, max_bytes=self.max_bytes)

    def truth(self, item: SourceItem) -> Mapping[str, Any] | None:
        """Nothing is known about real images."""
        return None

    def _check(self, row: Any, number: int, seen: dict[str, int], root: str) -> tuple[str, tuple[Turn, ...]]:
        if isinstance(row, Broken):
            raise BadRow(row.reason, row.detail)
        if not isinstance(row, dict):
            raise BadRow("row_not_an_object", f"a {type(row).__name__}")
        check_unicode(row)
        _check_id(row, number, seen)
        turns = _turns(row.get("conversations")) if self.use_conversations else ()
        return _image_path(row.get("image"), root), turns


def _check_id(row: dict[str, Any], number: int, seen: dict[str, int]) -> None:
    given = row.get("id")
    if given is None:
        raise BadRow("no_id")
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise BadRow("bad_id", f"{given!r}"[:200])
    first = seen.setdefault(str(given), number)
    if first != number:
        raise BadRow("duplicate_id", f"row {first} has the same id")


def _turns(conversations: Any) -> tuple[Turn, ...]:
    if not isinstance(conversations, list):
        raise BadRow("conversations_not_a_list", f"a {type(conversations).__name__}")
    turns = tuple(_turn(message) for message in conversations)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken:
        raise BadRow("empty_conversation")
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRow("roles_do_not_alternate", "a system turn that is not the first")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow("roles_do_not_alternate", ", ".join(spoken)[:200])
    slots = [turn.role for turn in turns for part in turn.content if isinstance(part, ImageSlot)]
    if len(slots) != 1:
        raise BadRow("placeholder_mismatch", f"{len(slots)} {PLACEHOLDER} for one image")
    if slots != ["user"]:
        raise BadRow("placeholder_mismatch", f"{PLACEHOLDER} in a turn of role {slots[0]}")
    return turns


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict):
        raise BadRow("turn_not_an_object", f"a {type(message).__name__}")
    role, value = message.get("from"), message.get("value")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow("unknown_role", f"{role!r}"[:200])
    if not isinstance(value, str):
        raise BadRow("value_not_a_string", f"a {type(value).__name__}")
    content: list[Part] = []
    pieces = value.strip().split(PLACEHOLDER)
    for position, piece in enumerate(pieces):
        if position:
            content.append(ImageSlot(0))
        # At either end of a turn the white space only sets the placeholder apart; inside a sentence it is text.
        if position == 1 and not pieces[0]:
            piece = piece.lstrip()
        if position == len(pieces) - 2 and not pieces[-1]:
            piece = piece.rstrip()
        if piece:
            content.append(Text(piece))
    if not any(isinstance(part, Text) for part in content):
        raise BadRow("empty_turn")
    return Turn(_ROLES[role], tuple(content))


def _image_path(image: Any, root: str) -> str:
    """The absolute path of an image that lies below the root."""
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None or image in ("", []):
        raise BadRow("no_image", "a row of text")
    if isinstance(image, list):
        raise BadRow("several_images", f"{len(image)} images; one per row is supported")
    if not isinstance(image, str):
        raise BadRow("image_not_a_string", f"a {type(image).__name__}")
    return image_path(image, root)
