"""The files of a journal: one that grows per writer on a disk, rows of numbered objects in an object store.

lines --append--> <segment>.jsonl                                                      (disk: write, fsync)
lines --append--> <segment>-<row>-<number>.jsonl --a full row--> <segment>-<row>.jsonl (object store: a put each)
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from infinity_mm.storage import files

FOLD_PARTS = 256
"""Objects of a segment on an object store that are folded into one."""
_READERS = 16
"""Objects read at once when a journal on an object store is opened."""
_AHEAD_BYTES = 64 << 20
"""So much of them, or one, waits in memory for its turn."""
_STREAM_BYTES = 1 << 20
_LINE_BYTES = 4096
"""Read from a disk for one line: more than most lines, and what a disk reads anyway."""
_BLOCK_BYTES = 1 << 18
"""Read from an object for one line: a request costs as much as this, and the next lines asked for are near."""
_NUM_BLOCKS = 64
_PART = re.compile(r"(?P<row>.+-\d{6})-(?P<number>\d{6})\.jsonl")


@runtime_checkable
class Segments(Protocol):
    """The files of a journal directory."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every segment file, by file name."""
        ...

    def read(self, spans: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Name -> (first byte, size of the file) to its bytes in blocks, in the given order.

        Blocks are read before the next name is asked for; a file that is gone is left out.
        """
        ...

    def line(self, name: str, offset: int) -> bytes:
        """The line that starts there, without its end."""
        ...

    def append(self, segment: str, data: bytes) -> tuple[str, int]:
        """Add whole lines to this worker's segment and return where they start.

        On return they are durable, on an error absent.
        """
        ...

    def path(self, name: str) -> str:
        """Where a person finds the file."""
        ...


def open_segments(directory: str) -> Segments:
    """Those of a path or fsspec URL."""
    if files.is_local(directory):
        return _LocalSegments(Path(files.open_fs(directory)[1]))
    return _ObjectSegments(directory)


def whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends; a last one without an end is left out."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


@final
class _LocalSegments:
    """One growing file per segment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sizes(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in self._directory.glob("*.jsonl")}

    def read(self, spans: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Iterable[bytes]]]:
        for name, (start, _) in spans.items():
            with open(self.path(name), "rb", buffering=0) as file:
                file.seek(start)
                yield name, iter(lambda: file.read(_STREAM_BYTES), b"")

    def line(self, name: str, offset: int) -> bytes:
        handle = os.open(self.path(name), os.O_RDONLY)
        try:
            data = b""
            while b"\n" not in data:
                more = os.pread(handle, max(_LINE_BYTES, len(data)), offset + len(data))
                if not more:
                    break
                data += more
        finally:
            os.close(handle)
        return data.partition(b"\n")[0]

    def append(self, segment: str, data: bytes) -> tuple[str, int]:
        file = self._directory / f"{segment}.jsonl"
        is_new = not file.exists()
        if is_new:
            self._directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, size)  # a full disk must not leave half a line before the next one
                raise
        finally:
            os.close(handle)
        if is_new:
            self._sync_directory()
        return file.name, size

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def _sync_directory(self) -> None:
        """Without it a power cut may forget the new file's name."""
        handle = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@final
class _ObjectSegments:
    """A numbered object per write, because an object store has no append; each full row of them becomes one.

    Folding keeps the lines, their order and the start of the name, so that the first of two lines stays the first.
    A kill between writing the one and removing the many leaves lines twice, which changes nothing.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._folds = 0
        self._parts: list[bytes] = []
        self._part_sizes: dict[str, int] = {}
        """Of every object that may be folded, to find its lines in the one that takes its place."""
        self._block = lru_cache(maxsize=_NUM_BLOCKS)(self._read_block)

    def sizes(self) -> dict[str, int]:
        found = {name: size for name, size in files.sizes(self._root).items() if name.endswith(".jsonl")}
        # Where a row has been folded, the many may be half removed.
        found = {
            name: size
            for name, size in found.items()
            if (part := _PART.fullmatch(name)) is None or f"{part['row']}.jsonl" not in found
        }
        self._part_sizes |= {name: size for name, size in found.items() if _PART.fullmatch(name)}
        return found

    def read(self, spans: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Iterable[bytes]]]:
        waiting: deque[tuple[str, int, Future[bytes | None]]] = deque()
        ahead = 0
        with ThreadPoolExecutor(_READERS) as pool:
            for name, (start, size) in spans.items():
                while waiting and ahead + size - start > _AHEAD_BYTES:
                    before, length, data = waiting.popleft()
                    ahead -= length
                    yield from _if_there(before, data)
                waiting.append((name, size - start, pool.submit(self._read, name, start)))
                ahead += size - start
            for name, _, data in waiting:
                yield from _if_there(name, data)

    def line(self, name: str, offset: int) -> bytes:
        try:
            return self._line(name, offset)
        except FileNotFoundError:
            part = _PART.fullmatch(name)
            if part is None:
                raise
            earlier = (f"{part['row']}-{number:06d}.jsonl" for number in range(int(part["number"])))
            return self._line(f"{part['row']}.jsonl", sum(self._part_sizes[one] for one in earlier) + offset)

    def append(self, segment: str, data: bytes) -> tuple[str, int]:
        name = self._part(segment, len(self._parts))
        files.write(self.path(name), data)
        self._parts.append(data)
        self._part_sizes[name] = len(data)
        if len(self._parts) >= FOLD_PARTS:
            files.write(self.path(f"{segment}-{self._folds:06d}.jsonl"), b"".join(self._parts))
            old = [self._part(segment, number) for number in range(len(self._parts))]
            self._folds, self._parts = self._folds + 1, []
            for each in old:
                files.remove(self.path(each))
        return name, 0

    def path(self, name: str) -> str:
        return files.join(self._root, name)

    def _part(self, segment: str, number: int) -> str:
        return f"{segment}-{self._folds:06d}-{number:06d}.jsonl"

    def _read(self, name: str, start: int) -> bytes | None:
        try:
            return files.read(self.path(name), start=start)
        except FileNotFoundError:
            return None

    def _line(self, name: str, offset: int) -> bytes:
        number, start = divmod(offset, _BLOCK_BYTES)
        block = self._block(name, number)
        line, end, _ = block[start:].partition(b"\n")
        while not end and len(block) == _BLOCK_BYTES:
            number += 1
            block = self._block(name, number)
            more, end, _ = block.partition(b"\n")
            line += more
        return line

    def _read_block(self, name: str, number: int) -> bytes:
        return files.read_part(self.path(name), number * _BLOCK_BYTES, (number + 1) * _BLOCK_BYTES)


def _if_there(name: str, data: Future[bytes | None]) -> Iterator[tuple[str, Iterable[bytes]]]:
    if (found := data.result()) is not None:
        yield name, (found,)
