"""Whole files on local disks and object stores, through fsspec: read, write at once, create once, list, remove.

bytes --write--> name.xxxx.partial --fsync, rename--> name      (local disk)
bytes --write--> one put                                        (object store, atomic by itself)
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

PARTIAL = ".partial"
"""Suffix of a file that is still being written on a local disk; never read by anyone."""


def open_fs(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path within it."""
    fs, path = fsspec.url_to_fs(url)
    return fs, cast(str, path)


def join(base: str, *parts: str) -> str:
    """Join a path or URL and further parts with `/`."""
    return "/".join([base.rstrip("/"), *parts])


def read(url: str) -> bytes:
    """Return all bytes; raises `FileNotFoundError`."""
    fs, path = open_fs(url)
    return cast(bytes, fs.cat_file(path))


def exists(url: str) -> bool:
    """Whether there is a file or folder."""
    fs, path = open_fs(url)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def write(url: str, data: bytes) -> None:
    """Write a whole file; whoever looks at it sees the old one or the new one, never a part."""
    fs, path = open_fs(url)
    if isinstance(fs, LocalFileSystem):
        os.replace(_write_partial(path, data), path)
        _sync_folder(path)
    else:
        fs.pipe_file(path, data)


def create(url: str, data: bytes) -> bool:
    """Write a whole file unless there is one already; return whether it was written. The first of several wins."""
    fs, path = open_fs(url)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    partial = _write_partial(path, data)
    try:
        os.link(partial, path)
    except FileExistsError:
        os.unlink(partial)
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A disk without hard links: the last of two that write in the same instant wins, still never a part.
        if os.path.exists(path):
            os.unlink(partial)
            return False
        os.replace(partial, path)
    else:
        os.unlink(partial)
    _sync_folder(path)
    return True


def names(url: str) -> list[str]:
    """Return the names in a folder, sorted; none if there is no such folder."""
    fs, path = open_fs(url)
    fs.invalidate_cache()
    try:
        found = cast("list[str]", fs.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = [entry.rstrip("/") for entry in found]
    return sorted(entry.rsplit("/", 1)[-1] for entry in inside if entry != path.rstrip("/"))


def remove(url: str) -> None:
    """Remove a file, if it is there."""
    fs, path = open_fs(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `target` at the end, or leaves it as it was on any error."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if target.exists():
        old = target.with_name(f"{target.name}.old.partial")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old)
    else:
        os.replace(partial, target)


def _write_partial(path: str, data: bytes) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{secrets.token_hex(4)}{PARTIAL}"
    with open(partial, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return partial


def _sync_folder(path: str) -> None:
    """Make the name as durable as the bytes: after a power cut a renamed file could be missing without this."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
