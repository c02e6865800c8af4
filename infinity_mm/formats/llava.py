"""LLaVA JSON and JSONL: `id`, `image` (a name or a list of names), `conversations` of `from` and `value`.

rows.json + image folder --LlavaReader--> Row        Row --LlavaWriter--> data.json + images/

Fields with other names come and go under their own names.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, final

from infinity_mm.formats.base import (
    Rejected,
    Row,
    check_id,
    check_object,
    check_places,
    from_value,
    from_value_turns,
    id_or_none,
    one_row,
)
from infinity_mm.formats.image_files import FOLDER, ImageFiles, ImageFolder
from infinity_mm.record import canonical_json
from infinity_mm.sources.json_rows import BadRow, Broken, json_rows

DATA_FILE = "data.json"


@final
class LlavaReader:
    """One file; images below one folder."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.not_carried: Counter[str] = Counter()
        self._path = path
        self._images = ImageFolder(os.path.realpath(images or path.parent))

    def read(self) -> Iterator[Row | Rejected]:
        """Every row in file order."""
        for number, value in enumerate(json_rows(str(self._path))):
            yield one_row(
                lambda notes, value=value, number=number: self._row(value, number, notes),
                number=number,
                id=id_or_none(value),
                file=self._path.name,
                not_carried=self.not_carried,
            )

    def _row(self, value: Any, number: int, notes: Counter[str]) -> Row:
        if isinstance(value, Broken):
            raise BadRow(value.reason, value.detail)
        row = check_object(value)
        if row.get("video"):
            raise BadRow("video_not_supported", str(row["video"])[:200])
        names = _names(row.get("image"))
        turns = from_value_turns(row.get("conversations"), notes)
        check_places(turns, len(names))
        columns, meta = split_columns(row, carried=("id", "image", "conversations"))
        return Row(
            number=number,
            id=check_id(row.get("id")),
            pictures=self._images.load(names),
            turns=turns,
            meta=meta,
            **columns,
        )


def _names(image: object) -> list[str]:
    """`image` as a list; none for a row of text."""
    if image is None or image == "":
        return []
    names: list[str] = []
    for name in image if isinstance(image, list) else [image]:
        if not isinstance(name, str) or not name:
            raise BadRow("image_not_a_string", f"{name!r}"[:200])
        names.append(name)
    return names


def split_columns(
    row: Mapping[str, Any], *, carried: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`source`, `licence` and `provenance` as columns, and what is neither that nor `carried`."""
    meta = {key: value for key, value in row.items() if key not in carried}
    columns: dict[str, Any] = {"source": None, "licence": None, "provenance": None}
    for key, column in (("source", "source"), ("license", "licence")):
        if isinstance(meta.get(key), str):
            columns[column] = meta.pop(key)
    if isinstance(meta.get("provenance"), dict):
        columns["provenance"] = canonical_json(meta.pop("provenance"))
    return columns, meta


def joined_columns(row: Row) -> dict[str, Any]:
    """The inverse of `split_columns`; what a row does not have is left out."""
    found: dict[str, Any] = dict(row.meta)
    if row.source is not None:
        found["source"] = row.source
    if row.licence is not None:
        found["license"] = row.licence
    if row.provenance is not None:
        found["provenance"] = json.loads(row.provenance)
    return found


@final
class LlavaWriter:
    """`data.json`, a list with one row a line, and `images/`, which the names in `image` are relative to."""

    def __init__(self, folder: Path) -> None:
        self.not_carried: Counter[str] = Counter()
        self._path, self._images = folder / DATA_FILE, ImageFiles(folder)
        self._file: TextIO = open(self._path, "w", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        self._num_rows = 0

    def write(self, row: Row) -> None:
        """Append a row."""
        conversations = from_value(row)
        names = [self._images.put(picture).removeprefix(f"{FOLDER}/") for picture in row.pictures]
        entry: dict[str, Any] = {} if row.id is None else {"id": row.id}
        if names:
            entry["image"] = names[0] if len(names) == 1 else names
        entry["conversations"] = conversations
        rest = {key: value for key, value in joined_columns(row).items() if key not in ("id", "image")}
        self._file.write(",\n" if self._num_rows else "[\n")
        self._file.write(json.dumps(rest | entry, ensure_ascii=False))
        self._num_rows += 1

    def close(self) -> int:
        """Close the list; rows counted by reading the file again."""
        self._file.write("\n]\n" if self._num_rows else "[]\n")
        self._file.close()
        with open(self._path, encoding="utf-8") as file:
            return sum(line.startswith("{") for line in file)
