from __future__ import annotations

import os
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.sources.config import SourceConfig, open_source
from infinity_mm.sources.file_list import read_list, write_list


def items(folder: Path, *files: str) -> dict[str, str | None]:
    write_list(folder / "list.jsonl", list(files))
    source = open_source(SourceConfig(kind="files", path=str(folder / "list.jsonl")))
    return {os.path.basename(item.key): item.problem for item in source.items()}


def test_named_files_are_items_whatever_their_suffix_each_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.txt", "two\nlines"):
        (tmp_path / name).write_bytes(b"x")
    files = [str(tmp_path / name) for name in ("two\nlines", "b.jpg", "a.txt", "b.jpg")]
    assert list(items(tmp_path, *files).items()) == [("a.txt", None), ("b.jpg", None), ("two\nlines", None)]


def test_what_is_no_file_is_listed_with_its_reason_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    files = [str(tmp_path / name) for name in ("folder", "pipe", "link", "gone")]
    assert items(tmp_path, *files) == {
        "folder": "is_a_folder",
        "pipe": "not_a_regular_file",
        "link": "broken_symlink",
        "gone": "missing_image",
    }


@pytest.mark.parametrize("line", ["/data/a.jpg", '"relative.jpg"', "7"])
def test_a_line_that_is_no_json_string_with_an_absolute_path_is_told_with_its_number(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "list").write_text(f'"/a.jpg"\n\n{line}\n')
    with pytest.raises(UserError, match="line 3"):
        read_list(str(tmp_path / "list"))


def test_a_missing_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no list of files"):
        read_list(str(tmp_path / "list"))
