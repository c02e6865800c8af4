"""Whole files on local disks and object stores, through fsspec: read, write at once, create once, list, remove.

bytes --write---> name.xxxx.partial --fsync, rename--> name      (local disk)
bytes --write---> one put                                        (object store, atomic by itself)
bytes --create--> hard link, which fails if there is a file      (local disk)
bytes --create--> a put with `If-None-Match: *`                  (object store)

Everything else in the package is written with these functions and does not know which of the two it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.config import conf
from fsspec.implementations.local import LocalFileSystem

from infinity_mm.errors import UserError, explain, need

PARTIAL = ".partial"
"""Suffix of a file that is still being written on a local disk; never read by anyone."""


_S3 = ("s3", "s3a")
_S3_ATTEMPTS = 10
"""Tries of one request on a 5xx, a throttling answer or a broken connection, with pauses of botocore's `standard` mode
(random, up to 1, 2, 4, ... 20 s): about a minute in all."""
_CONFLICT_TRIES = 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, a file larger than the system lets this process write."""
_EXTRAS = {"s3": ("s3", "s3fs"), "s3a": ("s3", "s3fs"), "hf": ("publish", "huggingface_hub")}
"""Protocol -> (extra, package)."""
_SPAN = re.compile(r"#bytes=(\d{1,18})-(\d{1,18})\Z")


def open_fs(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path within it.

    Raises `UserError` with the install line if the URL's protocol needs a package that is not there.
    """
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        if protocol in _S3:
            fs = _s3(os.getpid())
            return fs, cast(str, fs._strip_protocol(url))
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:
        if protocol in _EXTRAS:
            extra, package = _EXTRAS[protocol]
            raise need(package, extra=extra, purpose=f"a {protocol}:// URL") from error
        raise explain(
            what=f"{protocol}:// URLs: {error}", where=url, fix="install the named package"
        ) from error
    return fs, cast(str, path)


@lru_cache(maxsize=1)
def _s3(pid: int) -> AbstractFileSystem:
    """One client per process, shared by its threads: fsspec would make one for every thread, slowly each time.

    Without a cache of listings, because other processes write to the same folders.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if "config_kwargs" not in conf.get("s3", {}):
        options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": _S3_ATTEMPTS}}
    return fsspec.filesystem("s3", **options)


def is_local(url: str) -> bool:
    """Whether it is a path on a disk (or a disk that looks local, such as a shared mount)."""
    return isinstance(open_fs(url)[0], LocalFileSystem)


def join(base: str, *parts: str) -> str:
    """Join a path or URL and further parts with `/`."""
    return "/".join([base.rstrip("/"), *parts])


def read(url: str, *, start: int = 0) -> bytes:
    """Return all bytes from `start` on; raises `FileNotFoundError`."""
    fs, path = open_fs(url)
    if start:
        return cast(bytes, fs.cat_file(path, start=start))
    # One request instead of two: by default s3fs asks for the size first, to read large objects in parts.
    one = {"max_concurrency": 1} if "s3" in fs.protocol else {}
    return cast(bytes, fs.cat_file(path, **one))


def span_url(url: str, start: int, stop: int) -> str:
    """Names a part of a file: a member of a tar, where it lies."""
    return f"{url}#bytes={start}-{stop}"


def split_span(url: str) -> tuple[str, tuple[int, int] | None]:
    """The inverse of `span_url`; None for a whole file."""
    found = _SPAN.search(url)
    return (url, None) if found is None else (url[: found.start()], (int(found[1]), int(found[2])))


def read_span(url: str, start: int, stop: int) -> bytes:
    """Return the bytes from `start` up to `stop`; raises `OSError` if the file ends before."""
    if os.path.isabs(url):
        with open(url, "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
    else:
        fs, path = open_fs(url)
        data = cast(bytes, fs.cat_file(path, start=start, end=stop))
    if len(data) != stop - start:
        raise OSError(errno.EIO, f"{len(data)} bytes from {start} on, expected {stop - start}")
    return data


def read_part(url: str, start: int, stop: int) -> bytes:
    """Return the bytes from `start` up to `stop` or the end; raises `FileNotFoundError`."""
    fs, path = open_fs(url)
    return cast(bytes, fs.cat_file(path, start=start, end=stop))


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
        with _explained(url):
            fs.pipe_file(path, data)


def create(url: str, data: bytes) -> bool:
    """Write a whole file unless there is one already; return whether it was written. The first of several wins.

    On an object store False may also mean that a first try went through and its answer was lost: whoever must know
    puts something of its own into the file and reads it back.
    """
    fs, path = open_fs(url)
    if not isinstance(fs, LocalFileSystem):
        return _create_object(fs, path, data, url)
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


def sizes(url: str) -> dict[str, int]:
    """Return name -> bytes of the files in a folder; none if there is no such folder."""
    fs, path = open_fs(url)
    fs.invalidate_cache()
    try:
        found = cast("list[dict[str, Any]]", fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        entry["name"].rpartition("/")[2]: int(entry["size"])
        for entry in sorted(found, key=lambda entry: entry["name"])
        if entry["type"] == "file" and entry["name"].rstrip("/") != path.rstrip("/")
    }


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
    for path in (
        partial,
        *partial.rglob("*"),
    ):  # bytes first, or a power cut leaves a whole folder of empty files
        _sync(path)
    if target.exists():
        old = target.with_name(f"{target.name}.old.partial")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old)
    else:
        os.replace(partial, target)
    _sync(target.parent)


def _create_object(fs: AbstractFileSystem, path: str, data: bytes, url: str) -> bool:
    for attempt in range(_CONFLICT_TRIES):
        try:
            with _explained(url):
                fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            code = _s3_code(error)
            if code in ("PreconditionFailed", "412"):  # not every store says which condition it was
                return False
            # Another conditional put of the same name is under way, or has just been deleted: look again.
            if code not in ("ConditionalRequestConflict", "409") or attempt == _CONFLICT_TRIES - 1:
                raise
            time.sleep(0.05 * (attempt + 1))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """What a person has to put right is said as such; everything else passes."""
    try:
        yield
    except Exception as error:
        if (told := _advice(error, url)) is not None:
            raise told from error
        raise


def _advice(error: Exception, url: str) -> UserError | None:
    code, name = _s3_code(error), type(error).__name__
    bucket = url.partition("://")[2].partition("/")[0]
    if code == "NoSuchBucket":
        return explain(what=f"there is no bucket `{bucket}`", where=url, fix="create it, or correct the name")
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on the driver and on every worker"
        return explain(what="there are no credentials for the object store", where=url, fix=fix)
    if name in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionClosedError",
        "ReadTimeoutError",
    ):
        fix = "check the network and AWS_ENDPOINT_URL; the same command again goes on"
        return explain(what=f"the object store does not answer: {error}", where=url, fix=fix)
    if isinstance(error, PermissionError):
        fix = f"check the credentials, and that they may get, put, list and delete objects in `{bucket}`"
        return explain(what=f"the object store refuses to write: {error}", where=url, fix=fix)
    return None


def _s3_code(error: BaseException) -> str:
    """The store's own code for an error, empty if it has none."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def _write_partial(path: str, data: bytes) -> str:
    partial = f"{path}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)  # on a full disk every byte counts
        if error.errno in _FULL:
            raise _disk_full(error, path) from error
        raise
    return partial


def _disk_full(error: OSError, path: str) -> UserError:
    """The error for a disk that takes no more."""
    return explain(
        what=f"nothing more can be written: {error.strerror or error}",
        where=path,
        fix="make room, or raise the quota; the same command again goes on, and nothing that is on disk is lost",
    )


def _sync_folder(path: str) -> None:
    """Make the name as durable as the bytes: after a power cut a renamed file could be missing without this."""
    _sync(os.path.dirname(path))


def _sync(path: str | Path) -> None:
    """What was written to a file, or the names in a folder, onto the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
