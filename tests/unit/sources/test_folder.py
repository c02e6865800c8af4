from __future__ import annotations

import os
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.sources.base import SourceItem
from infinity_mm.sources.config import SourceConfig, open_sources
from infinity_mm.sources.folder import FolderSource


def listed(root: Path) -> dict[str, str | None]:
    return {item.key: item.problem for item in FolderSource(name="f", root=str(root)).items()}


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_every_entry_is_listed_sorted_with_a_reason_where_it_is_no_image(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpg", "a/notes.txt", ".hidden.jpg", ".git/x.jpg", "no_suffix"):
        put(tmp_path / name)
    assert list(listed(tmp_path).items()) == [
        (".git", "hidden_folder"),
        (".hidden.jpg", "hidden_file"),
        ("a/c.jpg", None),
        ("a/notes.txt", "not_an_image"),
        ("b.PNG", None),
        ("no_suffix", None),
    ]


def test_a_link_inside_the_root_is_read_and_a_link_out_of_it_is_not(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "secret.jpg")
    root = tmp_path / "root"
    inside = put(root / "in.jpg")
    (root / "good.jpg").symlink_to(inside)
    (root / "out.jpg").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "self").symlink_to(root)
    (root / "gone.jpg").symlink_to(root / "nothing.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    assert listed(root) == {
        "in.jpg": None,
        "good.jpg": None,
        "out.jpg": "symlink_leaves_root",
        "folder": "symlink_leaves_root",
        "self": "symlinked_folder",
        "gone.jpg": "broken_symlink",
        "loop.jpg": "symlink_loop",
    }


def test_a_folder_named_like_an_image_is_walked_and_listed(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg" / "y.jpg")
    assert listed(tmp_path) == {"x.jpg/": "is_a_folder", "x.jpg/y.jpg": None}


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert listed(tmp_path) == {"pipe.jpg": "not_a_regular_file"}


@pytest.mark.parametrize(
    "name",
    ["a\nb.jpg", "-rf.jpg", "\u202egpj.exe.jpg", "🦆.jpg", "..jpg.jpg"[1:], "x" * 250 + ".jpg", "a b%20.jpg"],
)
def test_hostile_names_are_keys_as_they_are(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    (item,) = FolderSource(name="f", root=str(tmp_path)).items()
    assert item.key == name
    assert SourceItem.from_plain(item.to_plain()) == item


def test_a_name_that_is_no_utf8_is_listed_and_not_read(tmp_path: Path) -> None:
    try:
        put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")))
    except OSError:
        pytest.skip("this file system refuses such names itself")
    put(tmp_path / "\\xff.jpg")
    problems = listed(tmp_path)
    assert problems.pop("\\xff.jpg") is None
    assert list(problems.values()) == ["name_not_utf8"]
    (key,) = problems
    key.encode("utf-8")


def test_the_same_folder_gives_the_same_ids_in_the_same_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "c/d.jpg"):
        put(tmp_path / name)
    first, second = (
        [item.id for item in FolderSource(name="f", root=str(tmp_path)).items()] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 3


def test_a_missing_root_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        list(FolderSource(name="f", root=str(tmp_path / "nothing")).items())


def test_a_folder_behind_a_url_is_listed_and_read(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", b"data")
    put(tmp_path / "b.txt")
    source = FolderSource(name="f", root=f"file://{tmp_path}")
    items = {item.key: item for item in source.items()}
    assert {key: item.problem for key, item in items.items()} == {"a.jpg": None, "b.txt": "not_an_image"}
    assert [picture.data for picture in source.read(items["a.jpg"]).pictures] == [b"data"]


def test_relative_paths_are_refused_with_the_absolute_one() -> None:
    with pytest.raises(UserError, match=r"write path=/.*/images"):
        SourceConfig(kind="folder", path="images")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("folder", {}),
        ("folder", {"path": "/x", "num_images": 3}),
        ("windtunnel", {}),
        ("windtunnel", {"num_images": 3, "path": "/x"}),
        ("windtunnel", {"num_images": 0}),
        ("llava", {"path": "/x.json", "image_root": "images"}),
    ],
)
def test_options_that_do_not_fit_the_kind_are_refused(kind: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="sources, kind"):
        SourceConfig(kind=kind, **options)  # type: ignore[arg-type]


def test_two_sources_of_one_name_are_refused() -> None:
    one = SourceConfig(kind="windtunnel", num_images=1)
    with pytest.raises(UserError, match="two sources are called `windtunnel`"):
        open_sources([one, one])
    with pytest.raises(UserError, match="no sources"):
        open_sources([])
