from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from source_data import png

from infinity_mm.config import build
from infinity_mm.errors import UserError
from infinity_mm.sources.base import SourceItem
from infinity_mm.sources.config import _KEYS, SourceConfig, open_source
from infinity_mm.sources.folder import FolderSource
from infinity_mm.sources.llava import LlavaSource


@pytest.mark.parametrize("kind", _KEYS)
def test_every_kind_opens_with_its_defaults(kind: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"num_images": 1} if kind == "windtunnel" else {"path": str(tmp_path / "x")}
    keys |= {"allow_network": True} if kind == "urls" else {}
    config = build(SourceConfig, {"kind": kind, "licence": "CC0-1.0", **keys})
    source = open_source(config)
    assert (source.name, source.licence) == (kind, "CC0-1.0")  # type: ignore[attr-defined]
    assert config.images_per_sample == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "folder", "path": "/a", "dpi": 300}, "a folder source has no `dpi`"),
        (
            {"kind": "pdf", "path": "/a", "use_conversations": False},
            "a pdf source has no `use_conversations`",
        ),
        ({"kind": "windtunnel", "num_images": 1, "path": "/a"}, "a windtunnel source has no `path`"),
        ({"kind": "parquet"}, "a parquet source is read"),
        ({"kind": "parquet", "path": "data"}, "path `data` is relative"),
        ({"kind": "llava", "path": "s3://bucket/rows.json"}, "is relative"),
        ({"kind": "pdf", "path": "/a", "window_pages": 2, "overlap_pages": 2}, "overlap_pages=2"),
        ({"kind": "parquet", "path": "/a", "max_images": 0}, "leave nothing"),
    ],
)
def test_a_key_that_a_kind_does_not_use_or_cannot_take_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(SourceConfig, keys)


def test_a_pattern_takes_the_files_that_match_and_no_others(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "deep/c.png", "deep/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    for root in (str(tmp_path), f"file://{tmp_path}"):
        listed = {
            pattern: [item.key for item in FolderSource(name="f", root=root, pattern=pattern).items()]
            for pattern in ("**/*.png", "*.png", "deep/*")
        }
        assert listed == {
            "**/*.png": ["a.png", "deep/c.png"],
            "*.png": ["a.png"],
            "deep/*": ["deep/c.png", "deep/d.txt"],
        }


def test_an_item_travels_to_a_worker_and_back_unchanged(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(
        '[{"id": 1, "image": "a.png", "license": "CC0-1.0", "conversations":'
        ' [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A."}]}, {"id": 2}]'
    )
    (tmp_path / "a.png").write_bytes(png(1))
    items = list(LlavaSource(name="l", path=str(tmp_path / "rows.json"), image_root=str(tmp_path)).items())
    assert [SourceItem.from_plain(item.to_plain()) for item in items] == items
    assert (items[0].licence, items[1].problem) == ("CC0-1.0", "conversations_not_a_list")
    assert SourceItem(key="a", source="f").to_plain() == ["f", "a"]
