from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from infinity_mm.errors import UserError
from infinity_mm.storage import files


@pytest.fixture(params=["disk", "object store"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path)
        return
    store = fsspec.filesystem("memory")
    store.rm("/", recursive=True) if store.ls("/") else None
    yield "memory://bucket/runs"


def test_what_is_written_is_read_back_and_listed(base: str) -> None:
    files.write(files.join(base, "a", "one"), b"1")
    files.write(files.join(base, "a", "two"), b"2")
    files.write(files.join(base, "a", "two"), b"22")
    assert files.read(files.join(base, "a", "two")) == b"22"
    assert files.names(files.join(base, "a")) == ["one", "two"]
    assert files.names(base) == ["a"]
    assert files.exists(files.join(base, "a", "one"))


def test_a_missing_folder_has_no_names_and_a_missing_file_does_not_exist(base: str) -> None:
    assert files.names(files.join(base, "nowhere")) == []
    assert not files.exists(files.join(base, "nowhere"))
    with pytest.raises(FileNotFoundError):
        files.read(files.join(base, "nowhere"))


def test_of_two_creations_the_first_wins(base: str) -> None:
    url = files.join(base, "entry.json")
    assert files.create(url, b"first")
    assert not files.create(url, b"second")
    assert files.read(url) == b"first"
    assert files.names(base) == ["entry.json"]


def test_removing_twice_is_the_same_as_removing_once(base: str) -> None:
    url = files.join(base, "gone")
    files.write(url, b"")
    files.remove(url)
    files.remove(url)
    assert files.names(base) == []


def test_on_a_disk_without_hard_links_the_first_creation_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    url = str(tmp_path / "entry.json")
    assert files.create(url, b"first")
    assert not files.create(url, b"second")
    assert files.read(url) == b"first"
    assert files.names(str(tmp_path)) == ["entry.json"]


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    files.write(url, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="nothing more can be written: disk full"):
        files.write(url, b"new")
    assert files.read(url) == b"old"
    assert os.listdir(tmp_path) == ["file"]
