from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from source_data import png, read_in, reasons

from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.conversations import CAPTION_REQUEST

LICENCES = [{"id": 1, "name": "CC-BY-2.0"}]


def captions(tmp_path: Path, images: list[Any], annotations: list[Any], **options: Any) -> SourceConfig:
    (tmp_path / "pictures").mkdir(exist_ok=True)
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(number))
    document = {"images": images, "annotations": annotations, "licenses": LICENCES}
    (tmp_path / "captions.json").write_text(json.dumps(document))
    root = str(tmp_path / "pictures")
    return SourceConfig(kind="coco", path=str(tmp_path / "captions.json"), image_root=root, **options)


def test_an_image_comes_with_its_captions_and_its_licence(tmp_path: Path) -> None:
    images = [{"id": 0, "file_name": "0.png", "license": 1}, {"id": 1, "file_name": "1.png"}]
    annotations = [
        {"id": 7, "image_id": 0, "caption": "A duck."},
        {"id": 8, "image_id": 0, "caption": " Yellow. "},
        {"id": 9, "image_id": 1, "caption": "A cat."},
    ]
    run = read_in(tmp_path, captions(tmp_path, images, annotations, licence="own"))
    said = {s.images[0].licence: [turn.text for turn in s.turns] for s in run.samples("unique")}
    assert said == {
        "CC-BY-2.0": [CAPTION_REQUEST, "A duck.", CAPTION_REQUEST, "Yellow."],
        "own": [CAPTION_REQUEST, "A cat."],
    }


def test_every_faulty_entry_has_its_own_reason(tmp_path: Path) -> None:
    images = [
        {"id": 0, "file_name": "../captions.json"},
        {"id": 1, "file_name": "9.png"},
        {"id": 1, "file_name": "0.png"},
        {"file_name": "0.png"},
        {"id": 4},
        7,
    ]
    strays = [{"id": 1, "image_id": 99, "caption": "x"}, {"id": 2, "image_id": 1}]
    run = read_in(tmp_path, captions(tmp_path, images, strays))
    assert reasons(run) == {
        "000000000": "image_leaves_root",
        "000000001": "missing_image",
        "000000002": "duplicate_id",
        "000000003": "no_id",
        "000000004": "image_not_a_string",
        "000000005": "row_not_an_object",
        "annotation 000000000": "unknown_image_id",
        "annotation 000000001": "no_caption",
    }


def test_without_conversations_an_image_needs_no_caption(tmp_path: Path) -> None:
    config = captions(tmp_path, [{"id": 0, "file_name": "0.png"}], [], use_conversations=False)
    (sample,) = read_in(tmp_path, config).samples("unique")
    assert sample.turns == ()


def test_a_file_that_is_no_captions_file_is_one_item(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("[1")
    run = read_in(tmp_path, SourceConfig(kind="coco", path=str(tmp_path / "captions.json")))
    assert reasons(run) == {"": "invalid_json"}
