"""Readers of training data, by kind."""

import io
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_data import picture

from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.sources import build_source
from infinity_mm.errors import UserError


def png(width: int) -> bytes:
    buffer = io.BytesIO()
    picture(width, 8).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, names: list[str]) -> None:
    rows = [
        {
            "id": name,
            "images": [{"bytes": png(8 + i), "path": None}],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "text": None}, {"type": "text", "text": f"Q{i}"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": f"A{i}"}]},
            ],
        }
        for i, name in enumerate(names)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{names[0]}.parquet", row_group_size=2)


def test_published_parquet_is_read_in_order_of_files(tmp_path: Path) -> None:
    write_parquet(tmp_path, ["b", "c", "d"])
    write_parquet(tmp_path, ["a"])
    source = build_source("parquet", {"path": str(tmp_path)})
    assert [source[i].id for i in range(len(source))] == ["a", "b", "c", "d"]
    assert source[3].messages == (Message("user", "<image>Q2"), Message("assistant", "A2"))
    assert source[3].images[0].size == (10, 8)
    assert pickle.loads(pickle.dumps(source))[2].id == "c"


def test_exchanges_of_a_published_file_can_be_read_as_independent(tmp_path: Path) -> None:
    write_parquet(tmp_path, ["a"])
    assert build_source("parquet", {"path": str(tmp_path), "turns": "independent"}).turns == "independent"


def test_llava_json_is_read_with_its_image_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(9))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "1", "image": "x.png", "conversations": turns}]))
    source = build_source("llava_json", {"path": str(tmp_path / "data.json"), "image_folder": str(tmp_path)})
    sample: Conversation = source[0]
    assert sample.messages == (Message("user", "<image>What?"), Message("assistant", "red"))
    assert sample.images[0].size == (9, 8)


def test_an_unknown_kind_and_a_wrong_option_name_the_fix() -> None:
    with pytest.raises(UserError, match="use one of parquet, llava_json, windtunnel"):
        build_source("parket", {})
    with pytest.raises(UserError, match="do not fit"):
        build_source("parquet", {"folder": "x"})


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Parquet file at"):
        len(build_source("parquet", {"path": str(tmp_path / "none.parquet")}))
