from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from format_data import png, read_jsonl

from infinity_mm.data.sources import build_source
from infinity_mm.formats.convert import import_data
from infinity_mm.sources.conversations import CAPTION_REQUEST

DOCUMENT = {
    "licenses": [{"id": 4, "name": "Attribution License", "url": "http://x"}],
    "images": [
        {"id": 9, "file_name": "1.png", "license": 4, "height": 6, "width": 8},
        {"id": 10, "file_name": "gone.png"},
        {"id": 11, "file_name": "1.png"},
        {"id": 9, "file_name": "1.png"},
        {"id": 12, "file_name": "../1.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "caption": "A."},
        {"id": 2, "image_id": 9, "caption": "A dog."},
        {"id": 3, "image_id": 9, "caption": "Grass. "},
        {"id": 4, "image_id": 99, "caption": "Nothing."},
        {"id": 5, "image_id": 9, "caption": " "},
        {"id": 6, "image_id": 9, "bbox": [1, 2, 3, 4]},
        {"id": 7, "image_id": 12, "caption": "Out."},
        "no annotation",
    ],
}


def test_an_image_and_its_captions_are_one_row_and_all_else_is_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(1))
    (tmp_path / "captions.json").write_text(json.dumps(DOCUMENT))
    summary = import_data("coco", tmp_path / "captions.json", tmp_path / "in", images=tmp_path / "images")
    (row,) = pq.read_table(tmp_path / "in" / "data").to_pylist()
    assert (row["id"], row["licence"]) == ("9", "Attribution License")
    assert json.loads(row["meta"]) == {"license": 4, "height": 6, "width": 8, "caption_ids": [2, 3]}
    (talk,) = build_source("parquet", {"path": str(tmp_path / "in")})
    assert [message.text for message in talk.messages] == [
        f"<image>{CAPTION_REQUEST}",
        "A dog.",
        CAPTION_REQUEST,
        "Grass. ",
    ]
    assert (summary["rows"], summary["taken"]) == (5 + 4, 1)
    lines = read_jsonl(tmp_path / "in" / "rejected.jsonl")
    assert [(line["row"], line["id"], line["reason"]) for line in lines] == [
        (1, "10", "missing_image"),
        (2, "11", "no_caption"),
        (3, "9", "duplicate_id"),
        (4, "12", "image_leaves_root"),
        (5, "4", "unknown_image_id"),
        (6, "5", "empty_turn"),
        (7, "6", "no_caption"),
        (8, None, "row_not_an_object"),
    ]
