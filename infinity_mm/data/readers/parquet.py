"""Our published format: Parquet with `images` (bytes and path) and `messages` (role and typed content).

files --row groups, in order of names--> Stored
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, final

import pyarrow as pa
import pyarrow.parquet as pq

from infinity_mm.data.conversation import Conversation, Outline, Turns
from infinity_mm.data.readers.stored import Stored, chat_messages
from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.storage.files import open_fs


@final
@dataclass(frozen=True)
class ParquetSource:
    """What `infinity-mm publish` and `infinity-mm import` write.

    Rows of text have no images, rows of several have one place each, or none and then all images come first.
    """

    path: str
    """A file, a folder or a pattern with `*`; local or any URL that fsspec reads."""
    turns: Turns = "causal"

    @property
    def fingerprint(self) -> str:
        """Hash of names and of the row and byte counts in the files' own metadata."""
        return digest(
            "parquet", *(f"{Path(g.file).name}/{g.num_rows}/{g.num_bytes}" for g in _groups(self.path))
        )

    def __len__(self) -> int:
        """Number of rows."""
        return _ends(self.path)[-1]

    def __getitem__(self, index: int) -> Conversation:
        """The conversation in row `index`, files in order of their names."""
        return self._stored(index).conversation()

    def outline(self, index: int) -> Outline:
        """Its messages and image sizes."""
        return self._stored(index).outline()

    def _stored(self, index: int) -> Stored:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(_ends(self.path), index)
        group = _groups(self.path)[number]
        inner = index - (_ends(self.path)[number] - group.num_rows)
        row: dict[str, Any] = _RECENT.table(group.file, group.number).slice(inner, 1).to_pylist()[0]
        return Stored(
            id=str(row.get("id") or f"{Path(group.file).name}/{group.number}/{inner}"),
            images=tuple(image["bytes"] or b"" for image in row.get("images") or ()),
            messages=chat_messages(row["messages"]),
            domain=str(row.get("source") or "default"),
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """One row group of one file."""

    file: str
    number: int
    num_rows: int
    num_bytes: int


@lru_cache(maxsize=64)
def _parquet(path: str) -> pq.ParquetFile:
    filesystem, inner = open_fs(path)
    return pq.ParquetFile(cast(Any, filesystem.open(inner, "rb")))


class _Recent:
    """The row groups read last: a sample costs a whole one, and a small data set is read once."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self._num_bytes = max_bytes, 0
        self._tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def table(self, path: str, group: int) -> pa.Table:
        """One row group, kept with others up to so many bytes; the last one in any case."""
        key = (path, group)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        table = _parquet(path).read_row_group(group)
        self._tables[key] = table
        self._num_bytes += table.nbytes
        while self._num_bytes > self.max_bytes and len(self._tables) > 1:
            self._num_bytes -= self._tables.popitem(last=False)[1].nbytes
        return table


_RECENT = _Recent(128 << 20)


@lru_cache(maxsize=16)
def _ends(path: str) -> tuple[int, ...]:
    """Rows up to the end of each row group."""
    return tuple(itertools.accumulate(group.num_rows for group in _groups(path)))


@lru_cache(maxsize=16)
def _groups(path: str) -> tuple[_Group, ...]:
    """All row groups of all files, in order."""
    filesystem, inner = open_fs(path)
    if filesystem.isdir(inner):
        inner = f"{inner.rstrip('/')}/**/*.parquet"
    files = cast("list[str]", sorted(filesystem.glob(inner)) if "*" in inner else [inner])
    if not files or not filesystem.exists(files[0]):
        raise explain(
            what=f"no Parquet file at {path}", where="YAML section `data`", fix="correct data[].path"
        )
    groups: list[_Group] = []
    for file in files:
        url = filesystem.unstrip_protocol(file)
        metadata = _parquet(url).metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append(_Group(url, number, group.num_rows, group.total_byte_size))
    return tuple(groups)
