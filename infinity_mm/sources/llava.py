"""LLaVA JSON and JSONL: one item per row, and every faulty row listed with its own reason.

file --rows, a broken one does not hide the next--> row --checks--> item with image path and turns
                                                          \\------> item with a problem
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from infinity_mm.record import Turn
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem, read_uri
from infinity_mm.sources.conversations import turns_of
from infinity_mm.sources.json_rows import BadRow, Broken, check_unicode, image_path, json_rows


@final
@dataclass(frozen=True, kw_only=True)
class LlavaSource(FromTheWorld):
    """Rows of `id`, `image`, `conversations`, with images below one folder."""

    name: str
    path: str
    """Absolute path of the JSON or JSONL file."""
    image_root: str
    """Absolute path of the folder that `image` is relative to; nothing outside it is read."""
    licence: str = "unknown"
    """For rows without a `license` of their own."""
    use_conversations: bool = True
    """False takes only the images, and accepts rows whose conversation is faulty."""

    def items(self) -> Iterator[SourceItem]:
        """All rows, in file order."""
        root = os.path.realpath(self.image_root)
        seen: dict[str, int] = {}
        for number, row in enumerate(json_rows(self.path)):
            uri, turns, problem, detail = None, (), None, ""
            licence = row.get("license") if isinstance(row, dict) else None
            try:
                uri, turns = self._check(row, number, seen, root)
            except BadRow as bad:
                problem, detail = bad.args
            yield SourceItem(
                key=f"{number:09d}",
                source=self.name,
                uri=uri,
                turns=turns,
                licence=licence if uri and isinstance(licence, str) and licence else None,
                problem=problem,
                detail=detail,
            )

    def read(self, item: SourceItem) -> Content:
        """The image file's bytes."""
        assert item.uri is not None
        picture = Picture(data=read_uri(item.uri), uri=item.uri)
        return Content(pictures=(picture,), licence=item.licence or self.licence, turns=item.turns)

    def _check(self, row: Any, number: int, seen: dict[str, int], root: str) -> tuple[str, tuple[Turn, ...]]:
        if isinstance(row, Broken):
            raise BadRow(row.reason, row.detail)
        if not isinstance(row, dict):
            raise BadRow("row_not_an_object", f"a {type(row).__name__}")
        check_unicode(row)
        _check_id(row, number, seen)
        turns = turns_of(row.get("conversations")) if self.use_conversations else ()
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
