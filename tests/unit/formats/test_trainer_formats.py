"""Frozen: what is written is what these trainers read today; a change here needs a look at their documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from format_data import png, read_jsonl, rejected, talk

from infinity_mm.formats.convert import export_data, import_data

ROWS = [
    {
        "id": "1",
        "image": "a.png",
        "source": "s",
        "conversations": talk("<image>\nWhat? 狗", "A dog."),
        "n": 1,
    },
    {"id": "2", "image": ["a.png", "b/b.png"], "conversations": talk("<image><image>Same?", "No.")},
    {"id": "3", "conversations": [{"from": "system", "value": "Be brief."}, *talk("2 + 2?", "4")]},
    {"id": "4", "conversations": talk("What does <video> mean?", "A tag.")},
]
LINES = [
    {
        "messages": [
            {"role": "user", "content": "<image>\nWhat? 狗"},
            {"role": "assistant", "content": "A dog."},
        ],
        "images": ["images/a.png"],
    },
    {
        "messages": [
            {"role": "user", "content": "<image><image>Same?"},
            {"role": "assistant", "content": "No."},
        ],
        "images": ["images/a.png", "images/b/b.png"],
    },
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
        ],
        "images": [],
    },
]


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b" / "b.png").write_bytes(png(2))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    import_data("llava", tmp_path / "rows.json", tmp_path / "in")
    return tmp_path


@pytest.mark.parametrize("trainer", ["swift", "llamafactory"])
def test_the_lines_and_the_image_files_are_frozen(imported: Path, trainer: str) -> None:
    summary = export_data(imported / "in", trainer, imported / "out")
    assert read_jsonl(imported / "out" / "train.jsonl") == LINES
    assert (imported / "out" / "images" / "a.png").read_bytes() == png(1)
    assert (imported / "out" / "images" / "b" / "b.png").read_bytes() == png(2)
    assert rejected(imported / "out") == [(3, "placeholder_in_text")]
    assert summary["not_carried"] == {"id": 3, "source": 1, "meta.n": 1}


def test_swift_gets_no_further_files(imported: Path) -> None:
    export_data(imported / "in", "swift", imported / "out")
    names = {path.name for path in (imported / "out").iterdir()}
    assert names == {"train.jsonl", "images", "rejected.jsonl", "summary.json"}


def test_llamafactory_gets_a_frozen_description_of_the_file(imported: Path) -> None:
    export_data(imported / "in", "llamafactory", imported / "out")
    assert json.loads((imported / "out" / "dataset_info.json").read_text()) == {
        "train": {
            "file_name": "train.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }
