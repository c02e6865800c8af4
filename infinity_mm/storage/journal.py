"""The journal: every model output, text or number, recorded once and never asked for again.

    put(key, value) --buffer--> sync() --one write, one fsync--> <sequence>-<worker>-<random>.jsonl
    Journal(directory) --checks all lines, keeps where they are--> get(key) --reads one line--> value

Workers share a directory and never touch each other's files. An object store has no append: there a segment is a row
of numbered objects, one per sync, and its writer folds each full row of them into one. What is held in memory is an
index, 16 bytes a line, and the lines that are not yet synced.

Where two workers recorded the same key, the entry in the first segment by name wins, then the first line: a rule that
depends on the files alone, so that every later reading agrees. Within one opening an answer once given is never
replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any, final

from infinity_mm.errors import UserError, explain
from infinity_mm.record import canonical_json
from infinity_mm.storage.line_index import LineIndex
from infinity_mm.storage.segments import Segments, open_segments, whole_lines

_WORKER = re.compile(r"[A-Za-z0-9_.-]+")
_CHECK_CHARS = 12
"""48 bits: a wrong line passes once in 3e14."""
_HEAD = b'{"check":"'
_BODY = len(_HEAD) + _CHECK_CHARS + len(b'",')
"""Where the checked part of a line starts."""
_KEY = _BODY + len(b'"key":')


@final
class Journal:
    """Model outputs of one run, by key; safe to use from several threads.

    A line is canonical JSON, `{"check": ..., "key": ..., "value": ...}`, where `check` is the start of the
    SHA-256 of the rest of the line. A last line without a line end is what a kill leaves behind and is ignored.
    """

    def __init__(self, directory: str, worker: str) -> None:
        """Check what is there and note where it is. Nothing is written before the first `sync` with something to write.

        `directory` is a path or an fsspec URL; `worker` names this writer in its segment's file name.
        """
        if not _WORKER.fullmatch(worker):
            raise explain(
                what=f"{worker!r} cannot be part of a file name",
                where="Journal(worker=...)",
                fix="use letters, digits, `_`, `.` and `-`",
            )
        self.directory = directory
        self._store: Segments = open_segments(directory)
        self._worker = worker
        self._segment: str | None = None
        self._index = LineIndex()
        self._unsynced: dict[bytes, bytes] = {}
        """Key, as it is written -> line, in the order of the puts."""
        self._read_to: dict[str, tuple[int, int]] = {}
        """Segment name -> (bytes, lines) read so far."""
        self._memory = threading.Lock()
        """Guards everything above; held for moments."""
        self._writing = threading.Lock()
        """Held during a write, so that a `sync` that finds nothing to write returns only once it is on disk."""
        self.refresh()

    def __len__(self) -> int:
        with self._memory:
            return len(self._index) + len(self._unsynced)

    def get(self, key: str) -> dict[str, Any] | None:
        """The value recorded for a key, as a fresh copy. Raises `UserError` if its line was damaged since."""
        written = _written(key)
        with self._memory:
            line = self._unsynced.get(written)
            places = [] if line is not None else self._index.find(written)
        line = line or self._read_line(written, places)
        return None if line is None else _value(line)

    def put(self, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Record a value unless the key has one, and return the recorded one, as every later run will read it.

        It is safe from a kill only after the next `sync`.
        """
        line, written = _encode(key, value), _written(key)
        with self._memory:
            kept = self._unsynced.get(written) or self._read_line(written, self._index.find(written))
            if kept is None:
                self._unsynced[written] = kept = line
        return _value(kept)

    def sync(self) -> None:
        """Make everything put so far survive a kill: one write and one fsync for all of it."""
        with self._writing:
            with self._memory:
                lines = dict(self._unsynced)
            if not lines:
                return
            if self._segment is None:
                self._segment = self._new_name()
            name, offset = self._store.append(self._segment, b"".join(lines.values()))
            with self._memory:
                for key, line in lines.items():
                    self._index.add(key, name, offset)
                    offset += len(line)
                    del self._unsynced[key]

    def refresh(self) -> int:
        """Read what other workers have recorded since; returns the number of new keys."""
        with self._memory:
            before = len(self._index)
            while not self._read_new():
                pass  # a writer folded its objects between our listing and our reading
            return len(self._index) - before

    def _read_new(self) -> bool:
        """Whether everything that was listed could be read."""
        new: dict[str, tuple[int, int]] = {}
        for name, size in sorted(self._store.sizes().items()):
            offset, _ = self._read_to.get(name, (0, 0))
            if size > offset and not (self._segment is not None and name.startswith(self._segment)):
                new[name] = offset, size
        num_read = 0
        for name, blocks in self._store.read(new):
            self._read(name, blocks)
            num_read += 1
        return num_read == len(new)

    def _read(self, name: str, blocks: Iterable[bytes]) -> None:
        offset, number = self._read_to.get(name, (0, 0))
        for line in whole_lines(blocks):
            number += 1
            if not _is_sound(line):
                raise _damaged(f"{self._store.path(name)}, line {number}")
            if (key := _written_key(line)) not in self._unsynced:  # whose answer has been given
                self._index.add(key, name, offset)
            offset += len(line) + 1
        self._read_to[name] = offset, number

    def _read_line(self, key: bytes, places: Iterable[tuple[str, int]]) -> bytes | None:
        for name, offset in places:
            line = self._store.line(name, offset)
            if not _is_sound(line):
                raise _damaged(f"{self._store.path(name)}, the line at byte {offset}")
            if _written_key(line) == key:
                return line
        return None

    def _new_name(self) -> str:
        """Numbers grow with time, so that an earlier segment is an earlier name; ties are broken by name."""
        numbers = [int(name.partition("-")[0]) for name in self._store.sizes()]
        return f"{max(numbers, default=0) + 1:08d}-{self._worker}-{secrets.token_hex(4)}"


def find_entries(directory: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """The values recorded for some keys, by the same rule as `Journal`, without an index.

    Key -> value; keys without a line are left out. Raises `UserError` for a damaged line of one of the keys.
    """
    store = open_segments(directory)
    wanted = {_written(key): key for key in keys}
    found: dict[str, dict[str, Any]] = {}
    spans = {name: (0, size) for name, size in sorted(store.sizes().items())}
    for name, blocks in store.read(spans):
        for number, line in enumerate(whole_lines(blocks), start=1):
            key = wanted.get(_written_key(line))
            if key is not None and key not in found:
                if not _is_sound(line):
                    raise _damaged(f"{store.path(name)}, line {number}")
                found[key] = _value(line)
    return found


def _encode(key: str, value: Mapping[str, Any]) -> bytes:
    body = canonical_json({"key": key, "value": dict(value)}).encode("utf-8", "surrogatepass")[1:]
    return _HEAD + _check(body) + b'",' + body + b"\n"


def _value(line: bytes) -> dict[str, Any]:
    return json.loads(line.decode("utf-8", "surrogatepass"))["value"]


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_CHECK_CHARS].encode()


def _is_sound(line: bytes) -> bool:
    return line[:_BODY] == _HEAD + _check(line[_BODY:]) + b'",'


def _written(key: str) -> bytes:
    """A key as it stands in a line, in quotes."""
    return canonical_json(key).encode("utf-8", "surrogatepass")


def _written_key(line: bytes) -> bytes:
    """Of a sound line; within a key every quote has a backslash before it, so the first such end is its end."""
    return line[_KEY : line.find(b'","value":', _KEY) + 1]


def _damaged(where: str) -> UserError:
    return explain(
        what="a journal line does not match its checksum: the file was damaged or edited",
        where=where,
        fix="restore the file from a copy, or delete the line and its request is asked again",
    )
