"""What a source lists: items, each with a stable key and either a place to read or a reason why not.

Source.items --> SourceItem*, from names and headers alone --Source.read, one at a time--> Content
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from infinity_mm.record import Sample, Tag, Turn, digest
from infinity_mm.storage import files
from infinity_mm.storage.files import open_fs, split_span
from infinity_mm.vision.images import BadImage

MAX_IMAGE_BYTES = 256 << 20
"""Larger image files are not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceItem:
    """One thing found in a source; also what is no image is an item, so that it has a fate.

    A driver holds millions of them: what is not needed to find the thing again is in `Content`.
    """

    key: str
    """Unique in its source, the same in every run: a relative path, a row number."""
    source: str
    """Name of the source."""
    uri: str | None = None
    """Where it lies, in words that its source understands; None where the key says it."""
    turns: tuple[Turn, ...] = ()
    """The conversation that came with it, where listing has read it already."""
    licence: str | None = None
    """Its own licence, where listing has read it already."""
    problem: str | None = None
    """Short snake_case reason why it cannot be used, found without opening an image."""
    detail: str = ""
    """The problem in words, for a person."""

    @property
    def id(self) -> str:
        """16 hex digits that stand for source and key."""
        return digest("item", self.source, self.key)[:16]

    def to_plain(self) -> list[Any]:
        """JSON-able form for a unit's payload: the fields in order, without empty ones at the end."""
        # The conversation travels in the record's own format: one definition of how turns look in JSON.
        turns = Sample(id=self.id, images=(), turns=self.turns).to_json() if self.turns else None
        plain = [self.source, self.key, self.uri, self.problem, self.detail or None, self.licence, turns]
        while plain[-1] is None:
            plain.pop()
        return plain

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> SourceItem:
        """The inverse of `to_plain`."""
        source, key, uri, problem, detail, licence, turns = [*plain, *[None] * (7 - len(plain))]
        return cls(
            key=key,
            source=source,
            uri=uri,
            licence=licence,
            problem=problem,
            detail=detail or "",
            turns=Sample.from_json(turns).turns if turns else (),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image of an item."""

    data: bytes
    """The encoded file, as it came."""
    uri: str | None = None
    """Where the very bytes can be read again; None: the run keeps them."""
    page: int | None = None
    """Page of a document, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What an item holds."""

    pictures: tuple[Picture, ...]
    """One; several are one sample of several images."""
    licence: str
    """SPDX name or the source's own words."""
    origin: str | None = None
    """The data set that the row itself names, within the source."""
    turns: tuple[Turn, ...] = ()
    """The conversation that came with the images."""
    tags: tuple[Tag, ...] | None = None
    """Image tags that came with the images; None where there are none."""


@runtime_checkable
class Source(Protocol):
    """A place that images come from. One object is used by one thread, unless `threads` is more than 1."""

    @property
    def name(self) -> str:
        """Unique among the sources of a run; part of every item's id."""
        ...

    @property
    def threads(self) -> int:
        """Items worth reading at once: more than 1 where reading is mostly waiting."""
        ...

    def items(self) -> Iterator[SourceItem]:
        """All items, in the same order in every run; never raises for a single bad one."""
        ...

    def read(self, item: SourceItem) -> Content:
        """What an item without a problem holds; raises `BadImage` or `BadRow`."""
        ...

    def truth(self, item: SourceItem) -> Mapping[str, Any] | None:
        """Ground truth of a generated item, for evaluation only; None for everything from the real world."""
        ...


class FromTheWorld:
    """What all sources of real images share."""

    threads = 1

    def truth(self, item: SourceItem) -> Mapping[str, Any] | None:
        """Nothing is known about real images."""
        return None


_REASONS = {
    errno.ENOENT: "missing_image",
    errno.ENOTDIR: "missing_image",
    errno.EISDIR: "is_a_folder",
    errno.EACCES: "unreadable_file",
    errno.EPERM: "unreadable_file",
    errno.ELOOP: "symlink_loop",
    errno.ENAMETOOLONG: "bad_image_path",
}


def read_uri(uri: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes at a path or URL, or in a span of one.

    Raises `BadImage` for what cannot be read or is larger than `max_bytes`.
    """
    try:
        url, span = split_span(uri)
        if span is not None:
            return files.read_span(url, *span)
        filesystem, path = open_fs(url)
        with open(url, "rb") if os.path.isabs(url) else filesystem.open(path, "rb") as file:
            data = cast(bytes, file.read(max_bytes + 1))
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "unreadable_file")
        raise BadImage(reason, f"{type(error).__name__}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise BadImage("file_too_large", f"more than {max_bytes} bytes")
    return data
