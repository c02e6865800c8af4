"""A folder of images, walked recursively; every entry that is no image is listed with the reason.

root --walk, sorted--> regular files with an image suffix or none --> items
                  \\--> hidden, other suffix, symlink out of the root, ... --> items with a problem
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

from fsspec.utils import glob_translate

from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem, read_uri
from infinity_mm.storage.files import open_fs

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff", "avif",
        "jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm", "ico", "tga",
    )
)  # fmt: skip
"""Suffixes of files that are opened; a file without any suffix is opened too and judged by its content."""


@final
@dataclass(frozen=True, kw_only=True)
class FolderSource(FromTheWorld):
    """Images below one folder, local or behind an fsspec URL."""

    name: str
    root: str
    """Absolute path or URL."""
    pattern: str | None = None
    """Which relative paths are taken, as in `**/*.jpg`; what does not match is no item. None: all."""
    licence: str = "unknown"

    @property
    def threads(self) -> int:
        """An object store answers slowly, and many at once."""
        return 1 if os.path.isabs(self.root) else 16

    def items(self) -> Iterator[SourceItem]:
        """Everything below the root, sorted by relative path."""
        found = _walk_local(self.root) if os.path.isabs(self.root) else _walk_remote(self.root)
        matches = re.compile(glob_translate(self.pattern or "**")).match
        for entry in sorted(found, key=lambda entry: entry.key):
            if matches(entry.key):
                yield SourceItem(
                    key=entry.key,
                    source=self.name,
                    uri=None if entry.problem else entry.uri,
                    problem=entry.problem,
                    detail=entry.detail,
                )

    def read(self, item: SourceItem) -> Content:
        """The file's bytes."""
        assert item.uri is not None
        return Content(pictures=(Picture(data=read_uri(item.uri), uri=item.uri),), licence=self.licence)


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    uri: str
    problem: str | None = None
    detail: str = ""


def _walk_local(root: str) -> Iterator[_Entry]:
    if not os.path.isdir(root):
        raise explain(
            what=f"there is no folder {root}",
            where="sources.path (configuration)",
            fix="give an existing folder",
        )
    real_root = os.path.realpath(root)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as scan:
                entries = list(scan)
        except OSError as error:
            yield _Entry(
                _key(folder) + "/", folder, "unreadable_folder", f"{type(error).__name__}: {error.strerror}"
            )
            continue
        for entry in entries:
            relative = os.path.join(folder, entry.name)
            problem, detail = _problem(entry, real_root)
            if problem == "" and entry.is_dir(follow_symlinks=False):
                pending.append(relative)
                if not _has_image_suffix(entry.name):
                    continue
                # Walked like any folder, and listed, because whoever counts `*.jpg` counts it.
                problem, relative = "is_a_folder", relative + "/"
            yield _Entry(_key(relative), os.path.join(root, relative), problem or None, detail)


def _problem(entry: os.DirEntry[str], real_root: str) -> tuple[str, str]:
    """Why an entry is not read, or an empty reason."""
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError:
        return "name_not_utf8", "rename the file: its name cannot be written to JSON"
    if entry.name.startswith("."):
        return ("hidden_folder" if entry.is_dir(follow_symlinks=False) else "hidden_file"), ""
    if entry.is_symlink():
        problem = _symlink_problem(entry, real_root)
        if problem[0]:
            return problem
    elif entry.is_dir(follow_symlinks=False):
        return "", ""
    try:
        if not stat.S_ISREG(entry.stat().st_mode):  # opening a pipe would wait for ever
            return "not_a_regular_file", ""
    except OSError as error:
        return "unreadable_file", f"{type(error).__name__}: {error.strerror}"
    if not _has_image_suffix(entry.name) and PurePosixPath(entry.name).suffix:
        return "not_an_image", f"suffix {PurePosixPath(entry.name).suffix[:40]}"
    return "", ""


def _symlink_problem(entry: os.DirEntry[str], real_root: str) -> tuple[str, str]:
    """A link may point to a file below the root, and to nothing else."""
    try:
        target = Path(entry.path).resolve(strict=True)
    except FileNotFoundError:
        return "broken_symlink", ""
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 say RuntimeError for a loop
        return "symlink_loop", str(error)[:200]
    if not target.is_relative_to(real_root):
        return "symlink_leaves_root", ""
    if target.is_dir():
        return "symlinked_folder", "its files are listed where they are"
    return "", ""


def _has_image_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _key(relative: str) -> str:
    """The relative path; a name that is no UTF-8 is escaped and made unique by a hash of its bytes."""
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError:
        raw = os.fsencode(relative)
        return raw.decode("utf-8", "backslashreplace") + "#" + digest(raw.hex())[:8]
    return relative


def _walk_remote(url: str) -> Iterator[_Entry]:
    """Object stores have neither folders nor links: names decide."""
    filesystem, root = open_fs(url)
    protocol = url.partition("://")[0]
    for path in filesystem.find(root):
        relative = path[len(root) :].lstrip("/")
        parts = PurePosixPath(relative).parts
        problem = None
        if any(part.startswith(".") for part in parts):
            problem = "hidden_file"
        elif not _has_image_suffix(relative) and PurePosixPath(relative).suffix:
            problem = "not_an_image"
        yield _Entry(relative, f"{protocol}://{path}", problem)
