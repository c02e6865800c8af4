"""Parquet and Hugging Face data sets with image columns.

files --row counts from their footers--> one item per row --batches of a few rows, in order--> Content

Listing reads no image: a file's footer says how many rows it has, and only the id column is read, if one is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, final

import pyarrow as pa
import pyarrow.parquet as pq

from infinity_mm.errors import explain
from infinity_mm.record import Turn
from infinity_mm.sources.base import MAX_IMAGE_BYTES, Content, FromTheWorld, Picture, SourceItem
from infinity_mm.sources.conversations import caption_turns, turns_of
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.sources.listing import Files
from infinity_mm.storage.files import open_fs
from infinity_mm.vision.images import BadImage

_IMAGE_COLUMNS = ("image", "images")
_BATCH_ROWS = 8
"""Rows decoded at once; arrow holds their images and the pages they lie in."""


@final
@dataclass(frozen=True, kw_only=True)
class ParquetSource(FromTheWorld):
    """Rows with an image, or a list of images, as bytes or as the datasets library's struct of bytes and path."""

    name: str
    path: str
    """A file, a folder or a pattern with `*`: local, or any URL fsspec reads, such as `hf://datasets/owner/name`."""
    licence: str = "unknown"
    image_column: str | None = None
    """None: `image` or `images`, whichever is there."""
    id_column: str | None = None
    """None: rows are known by file and number."""
    caption_column: str | None = None
    conversation_column: str | None = None
    licence_column: str | None = None
    max_images: int = 1
    """Rows with more are dropped."""
    _open: dict[str, _Rows] = field(default_factory=dict, init=False, compare=False)
    """The file that is being read: rows are asked for in order."""

    def items(self) -> Iterator[SourceItem]:
        """Rows in order of the files' names."""
        seen: set[str] = set()
        for name, url in self._files.list():
            try:
                parquet = _open(url)
            except (pa.ArrowInvalid, OSError) as error:
                detail = f"{type(error).__name__}: {error}"[:200]
                yield SourceItem(key=f"{name}/", source=self.name, problem="not_parquet", detail=detail)
                continue
            self._columns(parquet, url)
            with parquet:
                for row, id_ in enumerate(self._ids(parquet)):
                    yield self._item(f"{name}/{row:09d}", id_, seen)

    def _ids(self, parquet: pq.ParquetFile) -> Iterator[str | None]:
        """The id of every row, None where there is no column for it; a null is an empty text."""
        if self.id_column is None:
            yield from (None for _ in range(parquet.metadata.num_rows))
            return
        for batch in parquet.iter_batches(columns=[self.id_column]):
            yield from ("" if value is None else str(value) for value in batch.column(0).to_pylist())

    def _item(self, place: str, id_: str | None, seen: set[str]) -> SourceItem:
        if id_ is None:
            return SourceItem(key=place, source=self.name)
        if not id_ or id_ in seen:
            problem = "duplicate_id" if id_ else "no_id"
            return SourceItem(key=place, source=self.name, problem=problem, detail=id_[:200])
        seen.add(id_)
        return SourceItem(key=id_, source=self.name, uri=place)

    def read(self, item: SourceItem) -> Content:
        """Images, conversation or caption, and licence of one row; raises `BadImage` or `BadRow`."""
        name, _, number = (item.uri or item.key).rpartition("/")
        if name not in self._open:
            self._open.clear()
            parquet = _open(self._files.url(name))
            self._open[name] = _Rows(parquet, self._columns(parquet, name))
        row = self._open[name].row(int(number))
        images = _images(row[self._image_column(row)])
        if len(images) > self.max_images:
            raise BadRow("too_many_images", f"{len(images)} images, limit {self.max_images}")
        licence = row.get(self.licence_column or "")
        return Content(
            pictures=images,
            licence=str(licence) if licence else self.licence,
            turns=self._turns(row, len(images)),
        )

    def _turns(self, row: Mapping[str, Any], num_images: int) -> tuple[Turn, ...]:
        if self.conversation_column is not None:
            return turns_of(row[self.conversation_column], num_images, place_images=True)
        caption = row.get(self.caption_column or "")
        captions = [caption] if isinstance(caption, str) else caption or []
        if not all(isinstance(one, str) for one in captions):
            raise BadRow("value_not_a_string", f"caption is {caption!r}"[:200])
        return caption_turns(captions)

    def _columns(self, parquet: pq.ParquetFile, where: str) -> list[str]:
        """The columns that are read; raises `UserError` for one that the file does not have."""
        there = parquet.schema_arrow.names
        wanted = [self.caption_column, self.conversation_column, self.licence_column]
        columns = [self._image_column(there), *(name for name in wanted if name is not None)]
        for name in [*columns, *([self.id_column] if self.id_column else [])]:
            if name not in there:
                raise explain(
                    what=f"there is no column `{name}`",
                    where=where,
                    fix=f"name a column of the file in sources, kind parquet: {', '.join(there)}",
                )
        return columns

    def _image_column(self, there: Any) -> str:
        found = next((name for name in _IMAGE_COLUMNS if name in there), _IMAGE_COLUMNS[0])
        return self.image_column or found

    @property
    def _files(self) -> Files:
        return Files(self.path, ".parquet")


class _Rows:
    """Rows of one file; asked for in order, every batch is decoded once."""

    def __init__(self, parquet: pq.ParquetFile, columns: list[str]) -> None:
        self._parquet, self._columns = parquet, columns
        self._start = self._stop = self._group_stop = 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def row(self, number: int) -> dict[str, Any]:
        if not self._start <= number < self._group_stop:
            self._seek(number)
        while number >= self._stop:
            self._batch = next(self._batches)
            self._start, self._stop = self._stop, self._stop + len(self._batch)
        batch: Any = self._batch
        return batch.slice(number - self._start, 1).to_pylist()[0]

    def _seek(self, number: int) -> None:
        """To the beginning of the row group that holds the row."""
        stop = 0
        for group in range(self._parquet.metadata.num_row_groups):
            start, stop = stop, stop + self._parquet.metadata.row_group(group).num_rows
            if number < stop:
                self._start = self._stop = start
                self._group_stop = stop
                self._batches = self._parquet.iter_batches(
                    batch_size=_BATCH_ROWS, row_groups=[group], columns=self._columns, use_threads=False
                )
                return
        raise BadRow("no_such_row", f"row {number}: the file has changed since it was listed")


def _open(url: str) -> pq.ParquetFile:
    filesystem, path = open_fs(url)
    # Buffered, not whole column chunks: the images of a row group are often gigabytes.
    return pq.ParquetFile(cast(Any, filesystem.open(path, "rb")), buffer_size=1 << 20, pre_buffer=False)


def _images(value: Any) -> tuple[Picture, ...]:
    values = value if isinstance(value, list) else [value]
    if value is None or not values:
        raise BadRow("no_image", "the image column is empty")
    return tuple(Picture(data=_bytes(one)) for one in values)


def _bytes(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise BadRow("image_not_embedded" if path else "no_image", f"path {path!r}"[:200])
    if not isinstance(data, bytes):
        raise BadRow("image_not_bytes", f"a {type(data).__name__}; links are read by kind urls")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImage("file_too_large", f"more than {MAX_IMAGE_BYTES} bytes")
    return data
