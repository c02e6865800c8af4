"""COCO captions as a source: one item per image, its captions as the conversation that came with it.

captions.json --images, their annotations--> items with turns          file_name --below one folder--> bytes
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from infinity_mm.formats.base import check_id, check_object
from infinity_mm.formats.coco import load_captions
from infinity_mm.record import Turn
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem, read_uri
from infinity_mm.sources.conversations import caption_turns
from infinity_mm.sources.json_rows import BadRow, image_path


@final
@dataclass(frozen=True, kw_only=True)
class CocoSource(FromTheWorld):
    """A captions file and the folder of its images."""

    name: str
    path: str
    """Absolute path of the JSON file."""
    image_root: str
    """Absolute path of the folder that `file_name` is relative to; nothing outside it is read."""
    licence: str = "unknown"
    """For images whose own licence the file does not name."""
    use_conversations: bool = True
    """False takes only the images, also those without a caption."""

    def items(self) -> Iterator[SourceItem]:
        """Images in file order; an annotation that belongs to no image is an item with a problem."""
        try:
            images, captions, strays, licences = load_captions(Path(self.path))
        except BadRow as bad:
            yield SourceItem(key="", source=self.name, problem=bad.reason, detail=bad.detail)
            return
        root, seen = os.path.realpath(self.image_root), set[str]()
        for number, image in enumerate(images):
            key = f"{number:09d}"
            try:
                uri, turns = self._check(image, root, seen, captions)
            except BadRow as bad:
                yield SourceItem(key=key, source=self.name, problem=bad.reason, detail=bad.detail)
                continue
            licence = licences.get(str(image.get("license")))
            yield SourceItem(key=key, source=self.name, uri=uri, turns=turns, licence=licence)
        for number, (id_, bad) in enumerate(strays):
            detail = f"annotation {id_}: {bad.detail}"
            yield SourceItem(
                key=f"annotation {number:09d}", source=self.name, problem=bad.reason, detail=detail
            )

    def read(self, item: SourceItem) -> Content:
        """The image file's bytes, its captions, its licence."""
        assert item.uri is not None
        return Content(
            pictures=(Picture(data=read_uri(item.uri), uri=item.uri),),
            licence=item.licence or self.licence,
            turns=item.turns,
        )

    def _check(
        self, value: Any, root: str, seen: set[str], captions: dict[str, list[dict[str, Any]]]
    ) -> tuple[str, tuple[Turn, ...]]:
        image = check_object(value)
        id_, name = check_id(image.get("id")), image.get("file_name")
        if id_ is None or id_ in seen:
            raise BadRow("no_id" if id_ is None else "duplicate_id", f"image {id_}")
        seen.add(id_)
        if not isinstance(name, str) or not name:
            raise BadRow("image_not_a_string", f"file_name is {name!r}"[:200])
        turns = caption_turns(
            [one["caption"] for one in captions.get(id_, [])] if self.use_conversations else []
        )
        return image_path(name, root), turns
