"""What every format is read into and written from: one row, or the reason why there is none.

    reader --> Row | Rejected, one per input row, in order --> writer --> files

Readers hold the image bytes of one row at a time.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from infinity_mm.record import ImageSlot, Part, Role, Text, Turn
from infinity_mm.sources.json_rows import BadRow, check_unicode
from infinity_mm.vision.images import BadImage, decode_image

PLACEHOLDER = "<image>"
"""Marks the place of one image in formats whose turns are plain text."""
MAX_IMAGE_BYTES = 256 << 20
"""Larger image files are not read."""
MAX_ROW_BYTES = 1 << 30
"""All images of one row; Arrow's lists of bytes end at 2 GiB."""
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_NO_NAME = re.compile(r"[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as it came."""

    name: str | None
    """Relative path with `/`, without `..`; None if it came without a name."""
    data: bytes
    """The encoded file, never re-encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One conversation with its images."""

    number: int
    """Position in the input, from 0, over all files."""
    id: str | None
    """As given, not necessarily unique; None if it came without one."""
    pictures: tuple[Picture, ...]
    """In the order of their places."""
    turns: tuple[Turn, ...]
    """An optional system turn, then user and assistant in turn; image places in user turns only."""
    source: str | None = None
    """Data set it came from."""
    licence: str | None = None
    """SPDX name or the source's own words."""
    provenance: str | None = None
    """JSON of the run that made it."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Every other field of the row, JSON-able, under its own name."""
    file: str = ""
    """Where it stood, relative to what was read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """An input row that could not be taken."""

    number: int
    """Position in the input, from 0, over all files."""
    id: str | None
    file: str
    """Where it stands, relative to what was read."""
    reason: str
    """Short snake_case word to count by."""
    detail: str = ""
    """What exactly was wrong, for a person."""


class Reader(Protocol):
    """Reads one format."""

    not_carried: Counter[str]
    """Fields that were left out of rows that were taken, with the number of rows."""

    def read(self) -> Iterator[Row | Rejected]:
        """Every input row once, in order, numbered from 0; never raises for what a row or file holds."""
        ...


class Writer(Protocol):
    """Writes one format into a folder that does not exist for anyone else yet."""

    not_carried: Counter[str]
    """Fields that the format has no place for, with the number of rows."""

    def write(self, row: Row) -> None:
        """Append a row; raises `BadRow`, having written nothing, for one that the format cannot hold."""
        ...

    def close(self) -> int:
        """Finish the files and return how many rows are in them, counted from the files."""
        ...


def role_of(name: object) -> Role:
    """Our role for any of the names in use; raises `BadRow`."""
    if not isinstance(name, str) or name not in _ROLES:
        raise BadRow("unknown_role", f"{name!r}"[:200])
    return _ROLES[name]


def parts_of(text: str, first_slot: int) -> tuple[Part, ...]:
    """Text with `<image>` in it as parts; white space stays where it is, so that `text_of` gives the same text."""
    parts: list[Part] = []
    for position, piece in enumerate(text.split(PLACEHOLDER)):
        if position:
            parts.append(ImageSlot(first_slot + position - 1))
        if piece:
            parts.append(Text(piece))
    return tuple(parts)


def text_of(turn: Turn) -> str:
    """The turn as text with `<image>` in it; raises `BadRow` where that would not read back."""
    pieces = [part.text if isinstance(part, Text) else PLACEHOLDER for part in turn.content]
    text = "".join(pieces)
    if text.count(PLACEHOLDER) != num_slots([turn]):
        raise BadRow("placeholder_in_text", f"a text holds `{PLACEHOLDER}`, which would be read as an image")
    return text


def num_slots(turns: Sequence[Turn]) -> int:
    """Places for images."""
    return sum(isinstance(part, ImageSlot) for turn in turns for part in turn.content)


def check_turns(turns: Sequence[Turn]) -> None:
    """Raise `BadRow` unless roles alternate, no turn is empty and images stand in user turns."""
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken:
        raise BadRow("empty_conversation")
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRow("roles_do_not_alternate", "a system turn that is not the first")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow("roles_do_not_alternate", ", ".join(spoken)[:200])
    for number, turn in enumerate(turns):
        has_image = any(isinstance(part, ImageSlot) for part in turn.content)
        if has_image and turn.role != "user":
            raise BadRow("image_not_in_user_turn", f"turn {number}, role {turn.role}")
        if not has_image and not turn.text.strip():
            raise BadRow("empty_turn", f"turn {number}, role {turn.role}")


def check_places(turns: Sequence[Turn], num_images: int) -> None:
    """Raise `BadRow` unless there is one place per image."""
    if (places := num_slots(turns)) != num_images:
        raise BadRow("placeholder_mismatch", f"{places} {PLACEHOLDER} for {num_images} images")


def from_value_turns(conversations: object, not_carried: Counter[str]) -> tuple[Turn, ...]:
    """LLaVA's list of `from` and `value` as checked turns; raises `BadRow`."""
    if not isinstance(conversations, list):
        raise BadRow("conversations_not_a_list", f"a {type(conversations).__name__}")
    turns: list[Turn] = []
    extra: set[str] = set()
    for message in conversations:
        if not isinstance(message, dict):
            raise BadRow("turn_not_an_object", f"a {type(message).__name__}")
        role, value = role_of(message.get("from")), message.get("value")
        if not isinstance(value, str):
            raise BadRow("value_not_a_string", f"a {type(value).__name__}")
        turns.append(Turn(role, parts_of(value, num_slots(turns))))
        extra |= message.keys() - {"from", "value"}
    check_turns(turns)
    not_carried.update(f"conversations.{key}" for key in extra)
    return tuple(turns)


def from_value(row: Row) -> list[dict[str, str]]:
    """The inverse of `from_value_turns`; raises `BadRow`."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn.role], "value": text_of(turn)} for turn in row.turns]


def check_object(value: object) -> dict[str, Any]:
    """A row of JSON that may be kept: an object of valid Unicode and finite numbers; raises `BadRow`."""
    if not isinstance(value, dict):
        raise BadRow("row_not_an_object", f"a {type(value).__name__}")
    check_unicode(value)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise BadRow("nan_in_row", "NaN or Infinity, which JSON does not have") from error
    return value


def check_id(given: object) -> str | None:
    """An id as text; None is none. Raises `BadRow`."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise BadRow("bad_id", f"{given!r}"[:200])
    return str(given)


def id_or_none(row: object) -> str | None:
    """The id of a row that may be anything, for the list of what was rejected."""
    given = row.get("id") if isinstance(row, dict) else None
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        return None
    return str(given).encode("utf-8", "backslashreplace").decode()[:200]


def safe_name(name: str) -> str:
    """A relative path that stays where it is put; raises `BadRow`. Nothing is looked up."""
    if _NO_NAME.search(name):
        raise BadRow("bad_image_path", f"{name!r}"[:200])
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise BadRow("image_leaves_root", name[:200])
    return str(path)


def check_picture(data: bytes, name: str | None) -> None:
    """Raise `BadRow` for bytes that do not decode to a picture."""
    try:
        decode_image(data)
    except BadImage as bad:
        raise BadRow(bad.reason, f"{name}: {bad.detail}"[:300]) from bad


def check_row_bytes(pictures: Sequence[Picture]) -> None:
    """Raise `BadRow` when the images of a row are too many bytes to hold at once."""
    if (total := sum(len(picture.data) for picture in pictures)) > MAX_ROW_BYTES:
        raise BadRow("row_too_large", f"{total} bytes of images, limit {MAX_ROW_BYTES}")


def files_below(path: Path, suffix: str) -> list[tuple[str, Path]]:
    """The file itself, or all files below a folder with the suffix, by name; what is being written is left out."""
    if path.is_file():
        return [(path.name, path)]
    found = [(file.relative_to(path).as_posix(), file) for file in path.rglob(f"*{suffix}") if file.is_file()]
    return sorted((name, file) for name, file in found if ".partial/" not in name)


def one_row(
    parse: Callable[[Counter[str]], Row], *, number: int, id: str | None, file: str, not_carried: Counter[str]
) -> Row | Rejected:
    """What `parse` makes of one input row; nothing that one row holds stops the others."""
    notes: Counter[str] = Counter()
    try:
        row = parse(notes)
    except BadRow as bad:
        return Rejected(number=number, id=id, file=file, reason=bad.reason, detail=bad.detail)
    except RecursionError:
        return Rejected(number=number, id=id, file=file, reason="nested_too_deep")
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"[:300]
        return Rejected(number=number, id=id, file=file, reason="unexpected_error", detail=detail)
    not_carried.update(notes.keys())
    return dataclasses.replace(row, file=file)
