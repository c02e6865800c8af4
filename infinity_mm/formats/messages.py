"""Our published layout, which is a Hugging Face chat data set: Parquet with `messages` and `images`.

Parquet of anyone --MessagesReader--> Row        Row --MessagesWriter--> data/train-00000-of-00002.parquet

The written files are what a run publishes plus the column `meta`, JSON of every field that has no column.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

import pyarrow as pa
import pyarrow.parquet as pq

from infinity_mm.formats.base import (
    PLACEHOLDER,
    Picture,
    Rejected,
    Row,
    check_id,
    check_object,
    check_picture,
    check_places,
    check_row_bytes,
    check_turns,
    id_or_none,
    num_slots,
    one_row,
    parts_of,
    role_of,
    safe_name,
)
from infinity_mm.formats.image_files import ImageFolder
from infinity_mm.record import ImageSlot, Part, Text, Turn, canonical_json
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.synth.publish import FEATURES, ROW_GROUP_ROWS, SCHEMA, image_ending, parquet_options

WITH_META = pa.schema(
    [*SCHEMA, ("meta", pa.string())],
    metadata={
        "huggingface": canonical_json(
            {"info": {"features": {**FEATURES, "meta": {"dtype": "string", "_type": "Value"}}}}
        )
    },
)
"""What is written."""
ROW_GROUP_BYTES = 64 << 20
"""Image bytes after which a row group is closed early: readers hold whole groups in memory."""
MAX_GROUP_BYTES = 4 << 30
"""Larger row groups are not read: arrow may hold a whole group, and some of it twice (measured: 2.1 GB for 0.56)."""
FILE_ROWS, FILE_BYTES = 2000, 1 << 30
"""A file is closed at the first of the two."""
DATA_FOLDER = "data"
"""Where the files lie in a written folder: where `datasets.load_dataset(folder)` looks first."""
_BATCH_ROWS = 4
_OURS = ("id", "messages", "source", "licence", "provenance", "meta")


@final
class MessagesReader:
    """Files in order of their names; a row keeps its place even if its row group cannot be read."""

    def __init__(
        self, files: Sequence[tuple[str, Path]], images: Path | None = None, *, check_images: bool = True
    ) -> None:
        """`files`: name in reports and path. `check_images=False` skips the decoding of images checked before."""
        self.not_carried: Counter[str] = Counter()
        self._files, self._check_images = files, check_images
        self._images = None if images is None else ImageFolder(os.path.realpath(images))

    def read(self) -> Iterator[Row | Rejected]:
        """Every row of every file; a file that is no Parquet counts as one row."""
        number = 0
        for name, path in self._files:
            for value in _rows(path):
                yield one_row(
                    lambda notes, value=value, number=number, path=path: self._row(
                        value, number, path, notes
                    ),
                    number=number,
                    id=id_or_none(value),
                    file=name,
                    not_carried=self.not_carried,
                )
                number += 1

    def _row(self, value: dict[str, Any] | BadRow, number: int, path: Path, notes: Counter[str]) -> Row:
        if isinstance(value, BadRow):
            raise value
        row = dict(value)
        for column in row.pop(_LEFT_OUT, ()):
            notes[column] += 1
        turns, strings_only = _turns(row.get("messages"), notes)
        images = _image_list(row)
        if strings_only and images and not num_slots(turns):
            # Plain strings say nothing about places; trainers put the images before the first user text.
            turns = _images_first(turns, len(images))
        check_turns(turns)
        check_places(turns, len(images))
        columns = {key: row.pop(key, None) for key in _OURS}
        if columns["licence"] is None and isinstance(row.get("license"), str):
            columns["licence"] = row.pop("license")
        given = {key: item for key, item in row.items() if item is not None}
        meta = _finite(given) | _meta(columns["meta"])
        for key in ("source", "licence", "provenance"):
            if columns[key] is not None and not isinstance(columns[key], str):
                meta[key], columns[key] = _finite(columns[key]), None
        folder = self._images or ImageFolder(os.path.realpath(path.parent))
        return Row(
            number=number,
            id=check_id(columns["id"]),
            pictures=self._pictures(images, folder),
            turns=turns,
            source=columns["source"],
            licence=columns["licence"],
            provenance=columns["provenance"],
            meta=check_object(meta),
        )

    def _pictures(self, images: Sequence[Any], folder: ImageFolder) -> tuple[Picture, ...]:
        pictures: list[Picture] = []
        for image in images:
            data, name = (
                (image, None) if isinstance(image, bytes) else (image.get("bytes"), image.get("path"))
            )
            if data is None:
                if not name:
                    raise BadRow("null_image", "neither bytes nor path")
                pictures += folder.load([name])
                continue
            name = safe_name(name) if name else None
            if self._check_images:
                check_picture(data, name)
            pictures.append(Picture(name, data))
        check_row_bytes(pictures)
        return tuple(pictures)


_LEFT_OUT = "\0left out"
"""Key under which a row says which columns of its file JSON cannot hold; no column can be called so."""


def _rows(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a file as plain values, or why not."""
    if path.stat().st_size == 0:
        yield BadRow("empty_file")
        return
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:
        yield BadRow("not_parquet", f"{error}"[:200])
        return
    with file:
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        if "messages" not in names:
            yield BadRow("no_messages_column", f"columns: {', '.join(names)}"[:300])
        elif len(set(names)) != len(names):
            yield BadRow("double_column", f"columns: {', '.join(names)}"[:300])
        elif min(groups, default=0) < 0 or sum(groups) > 1000 * path.stat().st_size:
            yield BadRow("bad_metadata", f"{sum(groups)} rows in {path.stat().st_size} bytes")
        elif not sum(groups):
            yield BadRow("empty_file", "no rows")
        else:
            kept = [f.name for f in file.schema_arrow if f.name in _ANY_TYPE or _is_jsonable(f.type)]
            left_out = [name for name in names if name not in kept]
            for group, num_rows in enumerate(groups):
                yield from _group_rows(file, group, num_rows, kept, left_out)


_ANY_TYPE = ("messages", "images", "image")


def _group_rows(
    file: pq.ParquetFile, group: int, num_rows: int, columns: list[str], left_out: list[str]
) -> Iterator[dict[str, Any] | BadRow]:
    """Exactly `num_rows` values: those after a damaged page say that they cannot be read."""
    done = 0
    size = file.metadata.row_group(group).total_byte_size
    if size > MAX_GROUP_BYTES:
        for _ in range(num_rows):
            yield BadRow("row_group_too_large", f"row group {group}: {size} bytes, limit {MAX_GROUP_BYTES}")
        return
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            for index in range(min(batch.num_rows, num_rows - done)):
                yield _values(batch, index, left_out)
                done += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        detail = f"row group {group}: {error}"[:200]
    else:
        detail = f"row group {group} holds {done} rows, its metadata says {num_rows}"
    for _ in range(num_rows - done):
        yield BadRow("unreadable_row_group", detail)


def _values(batch: pa.RecordBatch, index: int, left_out: list[str]) -> dict[str, Any] | BadRow:
    try:
        return batch.slice(index, 1).to_pylist()[0] | {_LEFT_OUT: left_out}
    except UnicodeDecodeError as error:
        return BadRow("invalid_unicode", f"{error.reason} in a text column")
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return BadRow("unreadable_value", f"{type(error).__name__}: {error}"[:200])


def _is_jsonable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(kind):
        return all(_is_jsonable(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_jsonable(kind.value_type)
    if types.is_dictionary(kind):
        return _is_jsonable(kind.value_type)
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return types.is_null(kind) or any(is_plain(kind) for is_plain in plain)


def _finite(value: Any) -> Any:
    """The value with null in place of what JSON does not have: NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _meta(value: object) -> dict[str, Any]:
    """The column `meta`: our own JSON text read back, anything else kept as it is."""
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
    return {} if value is None else {"meta": _finite(value)}


def _turns(messages: object, notes: Counter[str]) -> tuple[tuple[Turn, ...], bool]:
    """Turns, and whether all contents were plain strings."""
    if not isinstance(messages, list):
        raise BadRow("messages_not_a_list", f"a {type(messages).__name__}")
    turns: list[Turn] = []
    strings_only = True
    for message in messages:
        if not isinstance(message, dict):
            raise BadRow("turn_not_an_object", f"a {type(message).__name__}")
        role, content = role_of(message.get("role")), message.get("content")
        if message.get("tool_calls"):
            raise BadRow("tool_calls_not_supported")
        if isinstance(content, str):
            parts = parts_of(content, num_slots(turns))
        elif isinstance(content, list):
            strings_only = False
            parts = _parts(content, num_slots(turns), notes)
        else:
            raise BadRow("content_missing", f"a {type(content).__name__}")
        turns.append(Turn(role, parts))
        notes.update(f"messages.{key}" for key in _given(message) - {"role", "content", "tool_calls"})
    return tuple(turns), strings_only


def _parts(content: Sequence[Any], first_slot: int, notes: Counter[str]) -> tuple[Part, ...]:
    parts: list[Part] = []
    slot = first_slot
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            if part.get("image") is not None:
                raise BadRow("image_in_part", "images belong in the column `images`")
            parts.append(ImageSlot(slot))
            slot += 1
        elif kind == "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise BadRow("value_not_a_string", f"a {type(text).__name__}")
            if PLACEHOLDER in text:
                raise BadRow("placeholder_in_text", f"a text part holds `{PLACEHOLDER}`")
            if text:
                parts.append(Text(text))
        else:
            raise BadRow("unknown_part_type", f"{kind!r}"[:200])
        notes.update(f"messages.content.{key}" for key in _given(part) - {"type", "text", "image"})
    return tuple(parts)


def _given(value: Mapping[str, Any]) -> set[str]:
    """Keys with a value: Arrow fills in nulls for what other rows have."""
    return {key for key, item in value.items() if item not in (None, "", [])}


def _images_first(turns: Sequence[Turn], num_images: int) -> tuple[Turn, ...]:
    slots = tuple(ImageSlot(i) for i in range(num_images))
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    return tuple(Turn(t.role, (*slots, *t.content)) if i == first else t for i, t in enumerate(turns))


def _image_list(row: dict[str, Any]) -> list[Any]:
    """Takes `images`, or else `image`, out of the row: structs of bytes and path, or bytes."""
    column = "images" if "images" in row else "image"
    value = row.pop(column, None)
    images = value if isinstance(value, list) else [] if value is None else [value]
    for image in images:
        if image is None:
            raise BadRow("null_image", f"in column `{column}`")
        is_struct = isinstance(image, dict) and image.keys() <= {"bytes", "path"}
        if not isinstance(image, bytes) and not is_struct:
            raise BadRow("images_not_bytes", f"a {type(image).__name__}; give structs of bytes and path")
    return images


@final
class MessagesWriter:
    """Parquet in files of bounded size and row groups of bounded rows and bytes."""

    def __init__(self, folder: Path) -> None:
        self.not_carried: Counter[str] = Counter()
        self._folder = folder / DATA_FOLDER
        self._folder.mkdir()
        self._names: list[Path] = []
        self._file: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._group_bytes = self._file_rows = self._file_bytes = 0

    def write(self, row: Row) -> None:
        """Append a row."""
        self._rows.append(
            {
                "id": row.id,
                "images": [{"bytes": p.data, "path": p.name or _name(p.data)} for p in row.pictures],
                "messages": [
                    {"role": turn.role, "content": [_plain(part) for part in turn.content]}
                    for turn in row.turns
                ],
                "source": row.source,
                "licence": row.licence,
                "provenance": row.provenance,
                "meta": canonical_json(row.meta) if row.meta else None,
            }
        )
        self._group_bytes += sum(len(picture.data) for picture in row.pictures)
        if len(self._rows) >= ROW_GROUP_ROWS or self._group_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> int:
        """Write what is left and give the files their names; rows counted from the files."""
        if self._rows or not self._names:
            self._flush()
        self._end_file()
        for number, path in enumerate(self._names):
            path.rename(self._folder / f"train-{number:05d}-of-{len(self._names):05d}.parquet")
        return sum(pq.read_metadata(path).num_rows for path in sorted(self._folder.glob("*.parquet")))

    def _flush(self) -> None:
        if self._file is None:
            self._names.append(self._folder / f"{len(self._names):05d}")
            options = parquet_options("meta")
            self._file = pq.ParquetWriter(self._names[-1], WITH_META, **options)
        table = pa.Table.from_pylist(self._rows, schema=WITH_META)
        self._file.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._file_rows += len(self._rows)
        self._file_bytes += self._group_bytes
        self._rows, self._group_bytes = [], 0
        if self._file_rows >= FILE_ROWS or self._file_bytes >= FILE_BYTES:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._file_rows, self._file_bytes = None, 0, 0


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:16]}.{image_ending(data)}"


def _plain(part: Part) -> dict[str, str | None]:
    if isinstance(part, ImageSlot):
        return {"type": "image", "text": None}
    return {"type": "text", "text": cast(Text, part).text}
