"""What a source lists: items, each with a stable key and either a place to read or a reason why not.

Source.items --> SourceItem* --Source.read--> encoded bytes
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from infinity_mm.record import Sample, Turn, digest
from infinity_mm.storage.files import open_fs
from infinity_mm.vision.images import BadImage


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceItem:
    """One thing found in a source; also what is no image is an item, so that it has a fate."""

    key: str
    """Unique in its source, sortable, the same in every run: a relative path, a row number."""
    source: str
    """Name of the source."""
    licence: str
    """SPDX name or the source's own words."""
    uri: str | None = None
    """Where the bytes lie; None if they are generated or there is a problem."""
    turns: tuple[Turn, ...] = ()
    """The conversation that came with the image, if any."""
    problem: str | None = None
    """Short snake_case reason why it cannot be used, found without opening the image."""
    detail: str = ""
    """The problem in words, for a person."""

    @property
    def id(self) -> str:
        """16 hex digits that stand for source and key."""
        return digest("item", self.source, self.key)[:16]

    def to_plain(self) -> dict[str, Any]:
        """JSON-able form for a unit's payload."""
        plain: dict[str, Any] = {
            name: getattr(self, name) for name in ("key", "source", "licence", "uri", "problem", "detail")
        }
        # The conversation travels in the record's own format: one definition of how turns look in JSON.
        plain["turns"] = Sample(id=self.id, images=(), turns=self.turns).to_json() if self.turns else None
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SourceItem:
        """The inverse of `to_plain`."""
        turns = plain["turns"]
        return cls(**{**plain, "turns": Sample.from_json(turns).turns if turns else ()})


@runtime_checkable
class Source(Protocol):
    """A place that images come from."""

    @property
    def name(self) -> str:
        """Unique among the sources of a run; part of every item's id."""
        ...

    def items(self) -> Iterator[SourceItem]:
        """All items, sorted by key; never raises for a single bad one."""
        ...

    def read(self, item: SourceItem) -> bytes:
        """Encoded bytes of an item without a problem; raises `BadImage`."""
        ...

    def truth(self, item: SourceItem) -> Mapping[str, Any] | None:
        """Ground truth of a generated item, for evaluation only; None for everything from the real world."""
        ...


_REASONS = {
    errno.ENOENT: "missing_image",
    errno.ENOTDIR: "missing_image",
    errno.EISDIR: "is_a_folder",
    errno.EACCES: "unreadable_file",
    errno.EPERM: "unreadable_file",
    errno.ELOOP: "symlink_loop",
    errno.ENAMETOOLONG: "bad_image_path",
}


def read_uri(uri: str, *, max_bytes: int) -> bytes:
    """The bytes at a path or URL; raises `BadImage` for what cannot be read or is larger than `max_bytes`."""
    try:
        filesystem, path = open_fs(uri)
        with open(uri, "rb") if os.path.isabs(uri) else filesystem.open(path, "rb") as file:
            data = cast(bytes, file.read(max_bytes + 1))
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "unreadable_file")
        raise BadImage(reason, f"{type(error).__name__}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise BadImage("file_too_large", f"more than {max_bytes} bytes")
    return data
