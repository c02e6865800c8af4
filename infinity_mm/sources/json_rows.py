"""Rows of JSON and JSONL files that nobody has checked, and the image files that they name.

file --json_rows, a broken piece does not hide the next--> values, `Broken` in place of what is no JSON
name --image_path--> a regular file below the root, or `BadRow` with the reason
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinity_mm.errors import explain


class BadRow(Exception):  # noqa: N818 (a fact about a row, not a programming error)
    """A row that cannot be used: a short snake_case reason and a detail for a person."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)

    @property
    def reason(self) -> str:
        """A short word to count by."""
        return str(self.args[0])

    @property
    def detail(self) -> str:
        """What exactly was wrong, for a person."""
        return str(self.args[1])


@dataclass(frozen=True, slots=True)
class Broken:
    """A piece of the file that is no JSON value."""

    reason: str
    detail: str


def json_rows(path: str) -> Iterator[Any]:
    """The values of the file in order; what is no JSON comes as `Broken` and does not stop what follows it."""
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
        yield Broken("empty_file", "no rows")
    elif start == "[" and not path.endswith((".jsonl", ".ndjson")):
        yield from _array(text)
    elif path.endswith((".jsonl", ".ndjson")) or isinstance(_value(text.lstrip().partition("\n")[0]), dict):
        yield from (_value(line) for line in text.split("\n") if line.strip())
    else:
        yield Broken("not_a_list", "the file holds neither a list of rows nor one row per line")


def _array(text: str) -> Iterator[Any]:
    """The elements of a JSON list one by one, so that a broken end costs only the end."""
    decoder, at = json.JSONDecoder(), _skip(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        yield Broken("empty_file", "an empty list")
        return
    while True:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield Broken("invalid_json", f"{error}"[:200])
            return
        yield value
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        yield Broken("invalid_json", f"the list is not closed properly at character {at}")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Broken("invalid_json", f"{error}"[:200])


def check_unicode(row: Any) -> None:
    """Raise `BadRow` for a row with text that is no valid Unicode: UTF-8 and Parquet have no place for it."""
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("invalid_unicode", f"{error.reason} at character {error.start} of the row") from error


def image_path(image: str, root: str) -> str:
    """The absolute path of an image file that lies below `root` (a real path); raises `BadRow`."""
    if "://" in image:
        raise BadRow("remote_image", "download it first: nothing is fetched that a row names")
    if "\0" in image:
        raise BadRow("bad_image_path", "it holds a null character")
    path = os.path.join(root, image)
    if not Path(os.path.normpath(path)).is_relative_to(root):
        raise BadRow("image_leaves_root", image[:200])
    try:
        real = Path(path).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadRow("missing_image", image[:200]) from error
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 say RuntimeError for a loop of links
        loop = isinstance(error, RuntimeError) or "symbolic links" in str(error)
        raise BadRow("symlink_loop" if loop else "bad_image_path", str(error)[:200]) from error
    if not real.is_relative_to(root):
        raise BadRow("symlink_leaves_root", image[:200])
    if not real.is_file():
        raise BadRow("is_a_folder" if real.is_dir() else "not_a_regular_file", image[:200])
    return os.path.normpath(path)
