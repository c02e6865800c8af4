"""COCO captions: one JSON object with `images`, `annotations` (captions) and `licenses`; read only.

images[i] + its annotations, in file order --> one row: the same request once per caption

An image with its captions is one input row; an annotation that belongs to no listed image is a row of its own.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from infinity_mm.formats.base import Rejected, Row, check_id, check_object, id_or_none, one_row
from infinity_mm.formats.image_files import ImageFolder
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.sources.conversations import CAPTION_REQUEST
from infinity_mm.sources.json_rows import BadRow


@final
class CocoReader:
    """One captions file; `file_name` is below one folder."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.not_carried: Counter[str] = Counter()
        self._path = path
        self._images = ImageFolder(os.path.realpath(images or path.parent))

    def read(self) -> Iterator[Row | Rejected]:
        """Images in file order, then annotations without an image."""
        try:
            images, captions, strays, licences = load_captions(self._path)
        except BadRow as bad:
            yield self._rejected(0, None, bad)
            return
        seen: set[str] = set()
        for number, image in enumerate(images):
            yield one_row(
                lambda notes, image=image, number=number: self._row(image, number, seen, captions, licences),
                number=number,
                id=id_or_none(image),
                file=self._path.name,
                not_carried=self.not_carried,
            )
        for number, (id_, bad) in enumerate(strays, start=len(images)):
            yield self._rejected(number, id_, bad)

    def _rejected(self, number: int, id_: str | None, bad: BadRow) -> Rejected:
        return Rejected(number=number, id=id_, file=self._path.name, reason=bad.reason, detail=bad.detail)

    def _row(
        self,
        value: Any,
        number: int,
        seen: set[str],
        captions: dict[str, list[dict[str, Any]]],
        licences: dict[str, str],
    ) -> Row:
        image = check_object(value)
        id_ = check_id(image.get("id"))
        if id_ is None:
            raise BadRow("no_id", "captions find their image by its id")
        if id_ in seen:
            raise BadRow("duplicate_id", f"image {id_}; its captions went to the first")
        seen.add(id_)
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise BadRow("image_not_a_string", f"file_name is {name!r}"[:200])
        own = captions.get(id_, [])
        if not own:
            raise BadRow("no_caption")
        turns: list[Turn] = []
        for caption in own:
            first = (ImageSlot(0), Text("\n" + CAPTION_REQUEST))
            turns.append(Turn("user", (Text(CAPTION_REQUEST),) if turns else first))
            turns.append(Turn("assistant", (Text(caption["caption"]),)))
        rest = {key: item for key, item in image.items() if key not in ("id", "file_name")}
        return Row(
            number=number,
            id=id_,
            pictures=self._images.load([name]),
            turns=tuple(turns),
            licence=licences.get(str(image.get("license"))),
            meta=rest | {"caption_ids": [caption.get("id") for caption in own]},
        )


def load_captions(
    path: Path,
) -> tuple[list[Any], dict[str, list[dict[str, Any]]], list[tuple[str | None, BadRow]], dict[str, str]]:
    """Images, captions by image id, annotations that cannot be attached, licence names by id; raises `BadRow`."""
    data = path.read_bytes()
    if not data.strip():
        raise BadRow("empty_file")
    try:
        document = json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise BadRow("invalid_json", f"{error}"[:200]) from error
    if not isinstance(document, dict):
        raise BadRow("not_an_object", f"a {type(document).__name__}; COCO is one object")
    images, annotations = document.get("images"), document.get("annotations")
    for key, value in (("images", images), ("annotations", annotations)):
        if not isinstance(value, list):
            raise BadRow(f"no_{key}", f"`{key}` is a {type(value).__name__}")
    assert isinstance(images, list)
    assert isinstance(annotations, list)
    if not images and not annotations:
        raise BadRow("empty_file", "no images and no annotations")
    known = {found for image in images if (found := id_or_none(image)) is not None}
    captions: dict[str, list[dict[str, Any]]] = {}
    strays: list[tuple[str | None, BadRow]] = []
    for annotation in annotations:
        try:
            captions.setdefault(_image_id(annotation, known), []).append(annotation)
        except BadRow as bad:
            strays.append((id_or_none(annotation), bad))
    return images, captions, strays, _licences(document.get("licenses"))


def _image_id(annotation: Any, known: set[str]) -> str:
    """The image a caption belongs to; raises `BadRow`."""
    caption = check_object(annotation).get("caption")
    if caption is None:
        raise BadRow("no_caption", "an annotation without `caption`: is this the captions file?")
    if not isinstance(caption, str):
        raise BadRow("value_not_a_string", f"caption is a {type(caption).__name__}")
    if not caption.strip():
        raise BadRow("empty_turn", "an empty caption")
    image_id = check_id(annotation.get("image_id"))
    if image_id not in known:
        raise BadRow("unknown_image_id", f"{image_id!r}"[:200])
    assert image_id is not None
    return image_id


def _licences(licences: object) -> dict[str, str]:
    """Names by id; a licence that cannot be read leaves its images without one, and their number in `meta`."""
    found: dict[str, str] = {}
    for licence in licences if isinstance(licences, list) else []:
        if isinstance(licence, dict) and isinstance(name := licence.get("name") or licence.get("url"), str):
            found[str(licence.get("id"))] = name
    return found
