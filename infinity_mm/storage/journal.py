"""The journal: every model output, text or number, recorded once and never asked for again.

    put(key, value) --buffer--> sync() --one write, one fsync--> <sequence>-<worker>-<random>.jsonl
    Journal(directory) --reads all segments--> get(key)

Workers share a directory and never touch each other's files. An object store has no append: there a segment is a row
of numbered objects, one per sync, and its writer folds each full row of them into one.

Where two workers recorded the same key, the entry in the first segment by name wins, then the first line: a rule that
depends on the files alone, so that every later reading agrees. Within one opening an answer once given is never
replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from infinity_mm.errors import explain
from infinity_mm.record import canonical_json
from infinity_mm.storage import files

_WORKER = re.compile(r"[A-Za-z0-9_.-]+")
_CHECK_CHARS = 12
"""48 bits: a wrong line passes once in 3e14."""
_HEAD = b'{"check":"'
FOLD_PARTS = 256
"""Objects of a segment on an object store that are folded into one."""
_READERS = 16
"""Objects read at once when a journal on an object store is opened."""
_BODY = len(_HEAD) + _CHECK_CHARS + len(b'",')
"""Where the checked part of a line starts."""


@final
class Journal:
    """Model outputs of one run, by key; safe to use from several threads.

    A line is canonical JSON, `{"check": ..., "key": ..., "value": ...}`, where `check` is the start of the
    SHA-256 of the rest of the line. A last line without a line end is what a kill leaves behind and is ignored.
    """

    def __init__(self, directory: str, worker: str) -> None:
        """Read what is there. Nothing is written before the first `sync` with something to write.

        `directory` is a path or an fsspec URL; `worker` names this writer in its segment's file name.
        """
        if not _WORKER.fullmatch(worker):
            raise explain(
                what=f"{worker!r} cannot be part of a file name",
                where="Journal(worker=...)",
                fix="use letters, digits, `_`, `.` and `-`",
            )
        self.directory = directory
        self._store = _open_segments(directory)
        self._worker = worker
        self._segment: str | None = None
        self._lines: dict[str, bytes] = {}
        self._pending: list[bytes] = []
        self._read_to: dict[str, tuple[int, int]] = {}
        """Segment name -> (bytes, lines) read so far."""
        self._memory = threading.Lock()
        """Guards everything above; held for moments."""
        self._writing = threading.Lock()
        """Held during a write, so that a `sync` that finds nothing pending returns only once it is on disk."""
        self.refresh()

    def __len__(self) -> int:
        with self._memory:
            return len(self._lines)

    def get(self, key: str) -> dict[str, Any] | None:
        """The value recorded for a key, as a fresh copy."""
        with self._memory:
            line = self._lines.get(key)
        return None if line is None else _decode(line)["value"]

    def put(self, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Record a value unless the key has one, and return the recorded one, as every later run will read it.

        It is safe from a kill only after the next `sync`.
        """
        line = _encode(key, value)
        with self._memory:
            kept = self._lines.setdefault(key, line)
            if kept is line:
                self._pending.append(line)
        return _decode(kept)["value"]

    def sync(self) -> None:
        """Make everything put so far survive a kill: one write and one fsync for all of it."""
        with self._writing:
            with self._memory:
                lines, self._pending = self._pending, []
            if not lines:
                return
            try:
                if self._segment is None:
                    self._segment = self._new_name()
                self._store.append(self._segment, b"".join(lines))
            except BaseException:
                with self._memory:
                    self._pending = lines + self._pending
                raise

    def refresh(self) -> int:
        """Read what other workers have recorded since; returns the number of new keys."""
        with self._memory:
            before = len(self._lines)
            while not self._read_new():
                pass  # a writer folded its objects between our listing and our reading
            return len(self._lines) - before

    def _read_new(self) -> bool:
        """Whether everything that was listed could be read."""
        new: dict[str, int] = {}
        for name, size in sorted(self._store.sizes().items()):
            offset, _ = self._read_to.get(name, (0, 0))
            if size > offset and not (self._segment is not None and name.startswith(self._segment)):
                new[name] = offset
        found = self._store.read(new)
        for name, data in found.items():
            self._read(name, data, *self._read_to.get(name, (0, 0)))
        return len(found) == len(new)

    def _read(self, name: str, data: bytes, offset: int, line_number: int) -> None:
        complete, _, _torn = data.rpartition(b"\n")
        if not complete:
            return
        for line in complete.split(b"\n"):
            line_number += 1
            self._lines.setdefault(
                _checked_key(line, where=f"{self._store.path(name)}, line {line_number}"), line
            )
        self._read_to[name] = (offset + len(complete) + 1, line_number)

    def _new_name(self) -> str:
        """Numbers grow with time, so that an earlier segment is an earlier name; ties are broken by name."""
        numbers = [int(name.partition("-")[0]) for name in self._store.sizes()]
        return f"{max(numbers, default=0) + 1:08d}-{self._worker}-{secrets.token_hex(4)}"


def find_entries(directory: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """The values recorded for some keys, by the same rule as `Journal`, one segment in memory at a time.

    Key -> value; keys without a line are left out. Raises `UserError` for a damaged line of one of the keys.
    """
    store = _open_segments(directory)
    wanted = {canonical_json(key).encode(): key for key in keys}
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(store.sizes()):
        complete, _, _torn = store.read({name: 0})[name].rpartition(b"\n")
        for number, line in enumerate(complete.split(b"\n"), start=1):
            if not line.startswith(b'"key":', _BODY):
                continue
            start = _BODY + len(b'"key":')
            key = wanted.get(line[start : line.find(b'"', start + 1) + 1])
            if key is not None and key not in found:
                _checked_key(line, where=f"{store.path(name)}, line {number}")
                found[key] = _decode(line)["value"]
    return found


@runtime_checkable
class _Segments(Protocol):
    """The files of a journal directory."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every segment file, by file name."""
        ...

    def read(self, offsets: Mapping[str, int]) -> dict[str, bytes]:
        """Bytes of files from an offset on, in the given order; a file that is gone is left out."""
        ...

    def append(self, segment: str, data: bytes) -> None:
        """Add whole lines to this worker's segment; on return they are durable, on an error absent."""
        ...

    def path(self, name: str) -> str:
        """Where a person finds the file."""
        ...


def _open_segments(directory: str) -> _Segments:
    if files.is_local(directory):
        return _LocalSegments(Path(files.open_fs(directory)[1]))
    return _ObjectSegments(directory)


@final
class _LocalSegments:
    """One growing file per segment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sizes(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in self._directory.glob("*.jsonl")}

    def read(self, offsets: Mapping[str, int]) -> dict[str, bytes]:
        return {name: files.read(self.path(name), start=offset) for name, offset in offsets.items()}

    def append(self, segment: str, data: bytes) -> None:
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

    def sizes(self) -> dict[str, int]:
        found = files.sizes(self._root)
        return {name: size for name, size in found.items() if name.endswith(".jsonl")}

    def read(self, offsets: Mapping[str, int]) -> dict[str, bytes]:
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(offsets, pool.map(self._read, offsets, offsets.values()))
            return {name: data for name, data in found if data is not None}

    def append(self, segment: str, data: bytes) -> None:
        files.write(self.path(self._part(segment, len(self._parts))), data)
        self._parts.append(data)
        if len(self._parts) >= FOLD_PARTS:
            files.write(self.path(f"{segment}-{self._folds:06d}.jsonl"), b"".join(self._parts))
            old = [self._part(segment, number) for number in range(len(self._parts))]
            self._folds, self._parts = self._folds + 1, []
            for name in old:
                files.remove(self.path(name))

    def path(self, name: str) -> str:
        return files.join(self._root, name)

    def _part(self, segment: str, number: int) -> str:
        return f"{segment}-{self._folds:06d}-{number:06d}.jsonl"

    def _read(self, name: str, offset: int) -> bytes | None:
        try:
            return files.read(self.path(name), start=offset)
        except FileNotFoundError:
            return None


def _encode(key: str, value: Mapping[str, Any]) -> bytes:
    body = canonical_json({"key": key, "value": dict(value)}).encode("utf-8", "surrogatepass")[1:]
    return _HEAD + _check(body) + b'",' + body + b"\n"


def _decode(line: bytes) -> dict[str, Any]:
    return json.loads(line.decode("utf-8", "surrogatepass"))


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_CHECK_CHARS].encode()


def _checked_key(line: bytes, *, where: str) -> str:
    if line[:_BODY] != _HEAD + _check(line[_BODY:]) + b'",':
        raise explain(
            what="a journal line does not match its checksum: the file was damaged or edited",
            where=where,
            fix="restore the file from a copy, or delete the line and its request is asked again",
        )
    return _decode(line)["key"]
