"""Conversations that come with images, as turns: LLaVA's and chat messages, and captions.

[{from, value}], [{role, content}] --turns_of--> Turn*        captions --caption_turns--> Turn*
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infinity_mm.record import ImageSlot, Part, Role, Text, Turn
from infinity_mm.sources.json_rows import BadRow

PLACEHOLDER = "<image>"
CAPTION_REQUEST = "Describe the image in one sentence."
"""What the user says before each caption; caption data have no questions."""
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def caption_turns(captions: Sequence[str]) -> tuple[Turn, ...]:
    """The same request once per caption; raises `BadRow` for an empty one."""
    turns: list[Turn] = []
    for caption in captions:
        if not caption.strip():
            raise BadRow("empty_turn", "an empty caption")
        slot = () if turns else (ImageSlot(0),)
        turns += [Turn("user", (*slot, Text(CAPTION_REQUEST))), Turn("assistant", (Text(caption.strip()),))]
    return tuple(turns)


def turns_of(conversations: Any, num_images: int = 1, *, place_images: bool = False) -> tuple[Turn, ...]:
    """LLaVA's `from` and `value`, or `role` and `content`, as turns with a place for every image; raises `BadRow`.

    White space around the places is removed. Where none is named, the images go before the first user text if
    `place_images` says so.
    """
    if not isinstance(conversations, list):
        raise BadRow("conversations_not_a_list", f"a {type(conversations).__name__}")
    turns: list[Turn] = []
    num_slots = 0
    for message in conversations:
        turns.append(_turn(message, num_slots))
        num_slots += sum(isinstance(part, ImageSlot) for part in turns[-1].content)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken:
        raise BadRow("empty_conversation")
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRow("roles_do_not_alternate", "a system turn that is not the first")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow("roles_do_not_alternate", ", ".join(spoken)[:200])
    if place_images and not num_slots:
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        slots_first = tuple(ImageSlot(index) for index in range(num_images))
        turns[first] = Turn("user", (*slots_first, *turns[first].content))
    slots = [turn.role for turn in turns for part in turn.content if isinstance(part, ImageSlot)]
    if len(slots) != num_images:
        raise BadRow("placeholder_mismatch", f"{len(slots)} {PLACEHOLDER} for {num_images} images")
    if wrong := [role for role in slots if role != "user"]:
        raise BadRow("placeholder_mismatch", f"{PLACEHOLDER} in a turn of role {wrong[0]}")
    return tuple(turns)


def _turn(message: Any, first_slot: int) -> Turn:
    if not isinstance(message, dict):
        raise BadRow("turn_not_an_object", f"a {type(message).__name__}")
    role, value = message.get("from", message.get("role")), message.get("value", message.get("content"))
    if isinstance(value, list) and "value" not in message:
        value = "".join(_written(part) for part in value)
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow("unknown_role", f"{role!r}"[:200])
    if not isinstance(value, str):
        raise BadRow("value_not_a_string", f"a {type(value).__name__}")
    content: list[Part] = []
    pieces = value.strip().split(PLACEHOLDER)
    for position, piece in enumerate(pieces):
        if position:
            content.append(ImageSlot(first_slot + position - 1))
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


def _written(part: Any) -> str:
    """A typed part of a chat message as text; raises `BadRow`."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return PLACEHOLDER
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise BadRow("unknown_part_type", f"{kind!r}"[:200])
