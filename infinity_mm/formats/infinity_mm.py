"""Infinity-MM's own layout: WebDataset tars, a `json` and a `jpg` member per sample, zero bytes of jpg for text only.

0001.json + 0001.jpg --InfinityMMReader--> Row        Row --InfinityMMWriter--> 00000.tar, 00001.tar, ...

The JSON holds `id`, `source`, `conversations`, `image`, `ram++_tags`, `ram++_tags_score`, `phash` (the field names of
the data set's official unpacker). `jpg` is the name of a slot: the file name in `image` says what the bytes are.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, final

from infinity_mm.formats.base import (
    MAX_IMAGE_BYTES,
    Picture,
    Rejected,
    Row,
    check_id,
    check_object,
    check_picture,
    check_places,
    from_value,
    from_value_turns,
    id_or_none,
    one_row,
    safe_name,
)
from infinity_mm.formats.llava import joined_columns, split_columns
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.synth.publish import image_ending

TAR_ROWS, TAR_BYTES = 5000, 1 << 30
"""A tar is closed at the first of the two."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where the content of a member lies in its tar."""

    offset: int
    size: int

    def read(self, file: BinaryIO) -> bytes:
        """The content."""
        file.seek(self.offset)
        return file.read(self.size)


@dataclass(slots=True)
class Group:
    """Members that follow each other and share everything before the first dot of the name."""

    key: str
    spans: dict[str, Span] = field(default_factory=dict)
    """Suffix -> place of the content."""
    problem: BadRow | None = None

    def checked(self) -> Group:
        """Itself if it is a sample of Infinity-MM; raises `BadRow`."""
        if self.problem is not None:
            raise self.problem
        for suffix in ("json", "jpg"):
            if suffix not in self.spans:
                raise BadRow(f"no_{suffix}_member", self.key)
        if unknown := self.spans.keys() - {"json", "jpg"}:
            raise BadRow("unknown_member", ", ".join(sorted(unknown))[:200])
        return self


def entry_of(text: bytes, key: str) -> dict[str, Any]:
    """The JSON member of a sample; raises `BadRow`."""
    try:
        return check_object(json.loads(text.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise BadRow("invalid_unicode", f"{error.reason} in {key}.json") from error
    except ValueError as error:
        raise BadRow("invalid_json", f"{key}.json: {error}"[:200]) from error


@final
class InfinityMMReader:
    """Tars in order of their names, samples in order of the tar; nothing is ever unpacked to disk."""

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        """`files`: name in reports and path."""
        self.not_carried: Counter[str] = Counter()
        self._files = files

    def read(self) -> Iterator[Row | Rejected]:
        """Every sample; a tar that is none, or breaks off, counts as one more row."""
        number = 0
        for name, path in self._files:
            with open(path, "rb") as file:
                for group in groups(file):
                    yield one_row(
                        lambda notes, group=group, file=file, number=number: _row(group, file, number, notes),
                        number=number,
                        id=_id(group, file),
                        file=name,
                        not_carried=self.not_carried,
                    )
                    number += 1


def _id(group: Group, file: BinaryIO) -> str | None:
    """The sample's own id where its JSON can be read, else its key in the tar."""
    try:
        found = id_or_none(entry_of(group.checked().spans["json"].read(file), group.key))
    except (BadRow, RecursionError):
        found = None
    return found or group.key.encode("utf-8", "backslashreplace").decode()[:200] or None


def _row(group: Group, file: BinaryIO, number: int, notes: Counter[str]) -> Row:
    spans = group.checked().spans
    entry = entry_of(spans["json"].read(file), group.key)
    data = spans["jpg"].read(file)
    turns = from_value_turns(entry.get("conversations"), notes)
    check_places(turns, 1 if data else 0)
    columns, meta = split_columns(entry, carried=("id", "conversations"))
    pictures: tuple[Picture, ...] = ()
    if data:
        name = _picture_name(group.key, entry.get("image"), data)
        check_picture(data, name)
        pictures = (Picture(name, data),)
        if meta.get("image") == name:
            del meta["image"]
    return Row(
        number=number,
        id=check_id(entry.get("id")),
        pictures=pictures,
        turns=turns,
        meta=meta,
        **columns,
    )


def _picture_name(key: str, image: object, data: bytes) -> str:
    """`image` where it is a plain relative path; else the key with the ending that `image` or the bytes say.

    The bytes are in the tar, so a path of the machine that packed it is only a name, and kept as such in `meta`.
    """
    if isinstance(image, str) and image:
        try:
            if safe_name(image) == image:
                return image
        except BadRow:
            pass
        suffix = PurePosixPath(image).suffix
        if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 5:
            return safe_name(key + suffix)
    return safe_name(f"{key}.{image_ending(data)}")


def groups(file: BinaryIO) -> Iterator[Group]:
    """Samples of a tar; what is wrong with a member spoils its own sample."""
    current: Group | None = None
    for key, suffix, found in members(file):
        if current is None or key != current.key:
            if current is not None:
                yield current
            current = Group(key)
        if isinstance(found, BadRow):
            current.problem = current.problem or found
        elif suffix in current.spans:
            current.problem = current.problem or BadRow("double_member", f"{key}.{suffix}")
        else:
            current.spans[suffix] = found
    if current is not None:
        yield current


def members(file: BinaryIO) -> Iterator[tuple[str, str, Span | BadRow]]:
    """(key, suffix, place) of every member that is no folder; a broken archive ends with a problem of its own.

    Only the heads of members are read; the file may be read elsewhere between two of them.
    """
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if not num_bytes:
        yield "", "", BadRow("empty_file")
        return
    try:
        archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        yield "", "", BadRow("not_a_tar", f"{error}"[:200])
        return
    num_members = 0
    while True:
        try:
            member = archive.next()
            if member is None:
                break
            if member.isdir():
                continue
            num_members += 1
            key, suffix, problem = name_of(member)
            if problem is None and member.size > MAX_IMAGE_BYTES:
                problem = BadRow("file_too_large", f"{member.size} bytes, limit {MAX_IMAGE_BYTES}")
            if problem is None and member.offset_data + member.size > num_bytes:
                raise tarfile.ReadError("unexpected end of data")
            found = problem or Span(member.offset_data, member.size)
        except Exception as error:  # tarfile raises anything on hostile headers, and what follows is lost
            yield "", "", BadRow("broken_archive", f"{type(error).__name__}: {error}"[:200])
            return
        yield key, suffix, found
        archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps a record of every member
    file.seek(archive.offset)  # type: ignore[attr-defined]
    end = file.read(tarfile.BLOCKSIZE)
    if not end or end.strip(b"\0"):
        # tarfile stops without a word at a damaged header; whoever cut the file cut its end mark too.
        yield "", "", BadRow("broken_archive", "no end mark where the archive ends: samples may be missing")
    elif not num_members:
        yield "", "", BadRow("empty_file", "a tar without members")


def name_of(member: tarfile.TarInfo) -> tuple[str, str, BadRow | None]:
    """Key and suffix as WebDataset cuts them, at the first dot of the last part of the path."""
    name = member.name
    path = PurePosixPath(name)
    base, dot, suffix = path.name.partition(".")
    key = str(path.parent / base) if base and dot else name
    if any("\ud800" <= character <= "\udfff" for character in name):
        return name, "", BadRow("name_not_utf8", f"{name!r}"[:200])
    if path.is_absolute() or ".." in path.parts:
        return name, "", BadRow("member_leaves_root", name[:200])
    if member.issym() or member.islnk():
        return key, suffix, BadRow("member_is_a_link", f"{name} -> {member.linkname}"[:200])
    if not member.isreg() or member.issparse():
        return key, suffix, BadRow("not_a_regular_file", name[:200])
    if not base or not dot:
        return name, "", BadRow("member_without_suffix", name[:200])
    return key, suffix, None


@final
class InfinityMMWriter:
    """Tars of bounded size with running numbers as keys; no time, user or host in the headers."""

    def __init__(self, folder: Path) -> None:
        self.not_carried: Counter[str] = Counter()
        self._folder = folder
        self._tar: tarfile.TarFile | None = None
        self._num_tars = self._num_rows = self._tar_rows = self._tar_bytes = 0

    def write(self, row: Row) -> None:
        """Append a sample; raises `BadRow` for several images, which the layout has no place for."""
        if len(row.pictures) > 1:
            raise BadRow("several_images", f"{len(row.pictures)} images, the layout holds one")
        conversations = from_value(row)
        entry: dict[str, Any] = {} if row.id is None else {"id": row.id}
        if row.pictures:
            entry["image"] = row.meta.get("image", row.pictures[0].name)
        entry["conversations"] = conversations
        text = json.dumps(joined_columns(row) | entry, ensure_ascii=False).encode()
        data = row.pictures[0].data if row.pictures else b""
        if self._tar is None:
            path = self._folder / f"{self._num_tars:05d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self._num_tars += 1
        for suffix, content in (("jpg", data), ("json", text)):
            member = tarfile.TarInfo(f"{self._num_rows:09d}.{suffix}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]
        self._num_rows += 1
        self._tar_rows += 1
        self._tar_bytes += len(data) + len(text)
        if self._tar_rows >= TAR_ROWS or self._tar_bytes >= TAR_BYTES:
            self._end_tar()

    def close(self) -> int:
        """Finish the last tar; rows counted from the tars."""
        self._end_tar()
        count = 0
        for path in sorted(self._folder.glob("*.tar")):
            with tarfile.open(path, "r:") as archive:
                count += sum(member.name.endswith(".json") for member in archive)
        return count

    def _end_tar(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar, self._tar_rows, self._tar_bytes = None, 0, 0
