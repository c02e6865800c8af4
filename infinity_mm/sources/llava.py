"""LLaVA JSON and JSONL: one item per row, and every faulty row listed with its own reason.

file --rows, a broken one does not hide the next--> row --checks--> item with image path and turns
                                                          \\------> item with a problem
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from infinity_mm.errors import explain
from infinity_mm.record import ImageSlot, Part, Role, Text, Turn
from infinity_mm.sources.base import SourceItem, read_uri

PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class _BadRow(Exception):  # noqa: N818 (a fact about a row, raised and caught in this file)
    """A row that cannot be used: reason and detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)


@dataclass(frozen=True, slots=True)
class _Broken:
    """A piece of the file that is no JSON value."""

    reason: str
    detail: str


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
        for number, row in enumerate(_rows(self.path)):
            uri, turns, problem, detail = None, (), None, ""
            try:
                uri, turns = self._check(row, number, seen, root)
            except _BadRow as bad:
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
        if isinstance(row, _Broken):
            raise _BadRow(row.reason, row.detail)
        if not isinstance(row, dict):
            raise _BadRow("row_not_an_object", f"a {type(row).__name__}")
        _check_unicode(row)
        _check_id(row, number, seen)
        turns = _turns(row.get("conversations")) if self.use_conversations else ()
        return _image_path(row.get("image"), root), turns


def _rows(path: str) -> Iterator[Any]:
    """The values of the file in order; what is no JSON comes as `_Broken` and does not stop what follows it."""
    try:
        # A byte that is no UTF-8 becomes a lone surrogate, so that it only spoils its own row.
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise explain(
            what=f"cannot read {path}: {error.strerror}",
            where="sources.path (configuration)",
            fix="give the path of a LLaVA JSON or JSONL file",
        ) from error
    start = text.lstrip()[:1]
    if not start:
        yield _Broken("empty_file", "no rows")
    elif start == "[" and not path.endswith((".jsonl", ".ndjson")):
        yield from _array(text)
    elif path.endswith((".jsonl", ".ndjson")) or isinstance(_value(text.lstrip().partition("\n")[0]), dict):
        yield from (_value(line) for line in text.split("\n") if line.strip())
    else:
        yield _Broken("not_a_list", "the file holds neither a list of rows nor one row per line")


def _array(text: str) -> Iterator[Any]:
    """The elements of a JSON list one by one, so that a broken end costs only the end."""
    decoder, at = json.JSONDecoder(), _skip(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        yield _Broken("empty_file", "an empty list")
        return
    while True:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield _Broken("invalid_json", f"{error}"[:200])
            return
        yield value
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        yield _Broken("invalid_json", f"the list is not closed properly at character {at}")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return _Broken("invalid_json", f"{error}"[:200])


def _check_unicode(row: dict[str, Any]) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadRow("invalid_unicode", f"{error.reason} at character {error.start} of the row") from error


def _check_id(row: dict[str, Any], number: int, seen: dict[str, int]) -> None:
    given = row.get("id")
    if given is None:
        raise _BadRow("no_id")
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise _BadRow("bad_id", f"{given!r}"[:200])
    first = seen.setdefault(str(given), number)
    if first != number:
        raise _BadRow("duplicate_id", f"row {first} has the same id")


def _turns(conversations: Any) -> tuple[Turn, ...]:
    if not isinstance(conversations, list):
        raise _BadRow("conversations_not_a_list", f"a {type(conversations).__name__}")
    turns = tuple(_turn(message) for message in conversations)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken:
        raise _BadRow("empty_conversation")
    if any(turn.role == "system" for turn in turns[1:]):
        raise _BadRow("roles_do_not_alternate", "a system turn that is not the first")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise _BadRow("roles_do_not_alternate", ", ".join(spoken)[:200])
    slots = [turn.role for turn in turns for part in turn.content if isinstance(part, ImageSlot)]
    if len(slots) != 1:
        raise _BadRow("placeholder_mismatch", f"{len(slots)} {PLACEHOLDER} for one image")
    if slots != ["user"]:
        raise _BadRow("placeholder_mismatch", f"{PLACEHOLDER} in a turn of role {slots[0]}")
    return turns


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict):
        raise _BadRow("turn_not_an_object", f"a {type(message).__name__}")
    role, value = message.get("from"), message.get("value")
    if not isinstance(role, str) or role not in _ROLES:
        raise _BadRow("unknown_role", f"{role!r}"[:200])
    if not isinstance(value, str):
        raise _BadRow("value_not_a_string", f"a {type(value).__name__}")
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
        raise _BadRow("empty_turn")
    return Turn(_ROLES[role], tuple(content))


def _image_path(image: Any, root: str) -> str:
    """The absolute path of an image that lies below the root."""
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None or image in ("", []):
        raise _BadRow("no_image", "a row of text")
    if isinstance(image, list):
        raise _BadRow("several_images", f"{len(image)} images; one per row is supported")
    if not isinstance(image, str):
        raise _BadRow("image_not_a_string", f"a {type(image).__name__}")
    if "://" in image:
        raise _BadRow("remote_image", "download it first: nothing is fetched that a row names")
    if "\0" in image:
        raise _BadRow("bad_image_path", "it holds a null character")
    path = os.path.join(root, image)
    if not Path(os.path.normpath(path)).is_relative_to(root):
        raise _BadRow("image_leaves_root", image[:200])
    try:
        real = Path(path).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _BadRow("missing_image", image[:200]) from error
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 say RuntimeError for a loop of links
        loop = isinstance(error, RuntimeError) or "symbolic links" in str(error)
        raise _BadRow("symlink_loop" if loop else "bad_image_path", str(error)[:200]) from error
    if not real.is_relative_to(root):
        raise _BadRow("symlink_leaves_root", image[:200])
    if not real.is_file():
        raise _BadRow("is_a_folder" if real.is_dir() else "not_a_regular_file", image[:200])
    return os.path.normpath(path)
