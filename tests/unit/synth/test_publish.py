from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from synth_fakes import NANO, seen

from infinity_mm.record import Call, ImageRef, ImageSlot, Region, Sample, Score, Text, Turn
from infinity_mm.synth.merge import conversation
from infinity_mm.synth.publish import parquet_bytes, row


@dataclass
class OneImage:
    data: bytes

    def read(self, image: ImageRef) -> bytes:
        return self.data


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


CALL = Call(stage="ask", model="m", prompt="nano/ask@1", key="k", temperature=0.0, seed=1)
PAIRS = [
    seen(f"a.q{n}.short", question=f"Question {n}?", answer=f"It is {n} 狗", style="short", calls=(CALL,),
         instruction_type="x/y/z", score=Score(overall=9, expected=8.5, uncertainty=0.1))
    for n in range(2)
]  # fmt: skip
TALK = conversation(PAIRS, 0, NANO)
ROW = row(TALK, PAIRS, OneImage(picture()))


def test_a_row_is_what_chat_templates_take() -> None:
    assert ROW["messages"][:2] == [
        {
            "role": "user",
            "content": [
                {"type": "image", "text": None},
                {"type": "text", "text": "Question 0?\nAnswer with a word or phrase."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "It is 0 狗"}]},
    ]
    assert ROW["images"][0]["path"] == "abababababababab.png"


def test_provenance_names_every_pair_and_no_path_of_this_machine() -> None:
    provenance = json.loads(ROW["provenance"])
    assert [pair["id"] for pair in provenance["pairs"]] == ["a.q0.short", "a.q1.short"]
    assert provenance["pairs"][0]["score"]["expected"] == 8.5
    assert provenance["pairs"][0]["calls"][0]["prompt"] == "nano/ask@1"
    assert "/a.png" not in ROW["provenance"]


def test_every_pair_has_its_score_and_labels_as_columns() -> None:
    labelled = PAIRS[0].with_label("loss", 0.75).with_label("blind", 1.0).with_label("repeat", 3.0)
    data = parquet_bytes([row(TALK, [labelled, PAIRS[1]], OneImage(picture()))])
    (pairs,) = pq.read_table(io.BytesIO(data))["pairs"].to_pylist()
    common = {"type": "x/y/z", "style": "short", "score": 8.5}
    assert pairs == [
        {"id": "a.q0.short", **common, "loss": 0.75, "blind": 1.0, "critic": None, "repeat": 3.0},
        {"id": "a.q1.short", **common, "loss": None, "blind": None, "critic": None, "repeat": None},
    ]


def test_the_same_rows_give_the_same_bytes() -> None:
    assert parquet_bytes([ROW] * 3) == parquet_bytes([ROW] * 3)


def test_row_groups_are_small() -> None:
    file = pq.ParquetFile(io.BytesIO(parquet_bytes([ROW] * 40)))
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sizes == [16, 16, 8]


def test_a_box_stands_in_the_text_as_its_marker() -> None:
    said = (ImageSlot(0), Text("What is in "), Region(0, (0.0, 0.25, 1.0, 0.5)), Text("?"))
    boxed = Sample(id="a", images=TALK.images, turns=(Turn("user", said),))
    (message,) = row(boxed, [], OneImage(picture()))["messages"]
    marker = "<|region 0 0.000000 0.250000 1.000000 0.500000|>"
    assert message["content"] == [
        {"type": "image", "text": None},
        {"type": "text", "text": f"What is in {marker}?"},
    ]


def test_the_datasets_library_gives_decoded_images_and_plain_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own dependencies
        datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(parquet_bytes([ROW] * 2))
    files = str(tmp_path / "train-00000-of-00001.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["images"] == datasets.List(datasets.Image())
    first = loaded[0]
    assert first["images"][0].size == (6, 4)
    assert first["images"][0].getpixel((0, 0)) == (200, 0, 0)
    assert first["messages"] == ROW["messages"]
    assert set(loaded.features) == {"id", "images", "messages", "source", "licence", "provenance", "pairs"}
    assert [(pair["id"], pair["score"]) for pair in first["pairs"]] == [
        ("a.q0.short", 8.5),
        ("a.q1.short", 8.5),
    ]


def test_a_file_without_rows_still_says_what_its_columns_are() -> None:
    table = pq.read_table(io.BytesIO(parquet_bytes([])))
    assert (table.num_rows, "images" in table.schema.names) == (0, True)
    assert b"huggingface" in table.schema.metadata
