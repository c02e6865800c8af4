from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from infinity_mm.errors import UserError
from infinity_mm.runtime.run import Run
from infinity_mm.sources.read_pass import ReadConfig
from infinity_mm.trial.inputs import Given, Selection, expand, select

CONFIG = ReadConfig(sources=())


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 40), grey).save(path, format="PNG")
    return path


def chosen(given: list[Given], folder: Path, n: int) -> Selection:
    return select(given, num_pictures=n, config=CONFIG, run=Run(str(folder / "run")))


def test_files_folders_and_patterns_name_each_file_once(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/b/y.png", "c/z.dat"):
        picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("x")
    found = expand([str(tmp_path / "a"), str(tmp_path / "a" / "x.png"), str(tmp_path / "c" / "*.dat")])
    assert [(os.path.relpath(one.path, tmp_path), one.problem) for one in found] == [
        ("a/b/y.png", None),
        ("a/notes.txt", "not_an_image"),
        ("a/x.png", None),
        ("c/z.dat", None),
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    assert len(expand([str(picture(tmp_path / "a[1].png"))])) == 1


def test_an_argument_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        expand([str(tmp_path / "*.jpg")])


def test_every_file_is_read_unusable_or_not_needed(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.png", grey=number)
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "pipe.txt").write_text("x")
    selection = chosen(expand([str(tmp_path)]), tmp_path / "out", 3)
    assert len(selection.pictures) == 3
    assert selection.num_given == 8
    assert {one.problem for one in selection.unusable} <= {"not_an_image"}
    assert set(selection.looked_at) >= set(selection.pictures)


def test_a_copy_takes_no_place_and_more_pictures_begin_with_the_same_ones(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.png", grey=number // 2)
    given = expand([str(tmp_path)])
    two, four = (chosen(given, tmp_path / "out", n) for n in (2, 4))
    assert len(set(two.pictures.values())) == 2
    assert len(set(four.pictures.values())) == 4
    assert set(two.pictures) <= set(four.pictures)
