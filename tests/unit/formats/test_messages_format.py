from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_data import png, rejected

from infinity_mm.data.conversation import Message
from infinity_mm.data.sources import build_source
from infinity_mm.formats import messages
from infinity_mm.formats.convert import export_data, import_data
from infinity_mm.synth.publish import SCHEMA

TEXT = {"type": "text", "text": "Same?"}
IMAGE = {"type": "image", "text": None}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "No."}]}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def imported(folder: Path, table: pa.Table, **options: Any) -> list[dict[str, Any]]:
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(table, folder / "data" / "x.parquet")
    import_data("messages", folder / "data", folder / "in", **options)
    return pq.read_table(folder / "in" / "data").to_pylist()


def test_typed_parts_images_and_order_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        {"messages": [user(IMAGE, TEXT, IMAGE), ANSWER], "images": [image(1), image(2)]},
        {"messages": [user(TEXT, TEXT), ANSWER, user(IMAGE), ANSWER], "images": [image(3)]},
        {"messages": [user(TEXT), ANSWER], "images": []},
    ]
    found = imported(tmp_path, pa.Table.from_pylist(rows))
    assert [{key: row[key] for key in ("messages", "images")} for row in found] == rows
    export_data(tmp_path / "in", "messages", tmp_path / "out")
    name = "data/train-00000-of-00001.parquet"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def image(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": f"{seed}.png"}


def test_the_written_files_are_what_a_run_publishes_and_one_column_more(tmp_path: Path) -> None:
    imported(tmp_path, pa.Table.from_pylist([{"messages": [user(TEXT), ANSWER]}]))
    schema = pq.read_schema(tmp_path / "in" / "data" / "train-00000-of-00001.parquet")
    assert schema.names == [*SCHEMA.names, "meta"]
    assert all(schema.field(name).equals(SCHEMA.field(name)) for name in SCHEMA.names)


def test_plain_strings_may_say_where_images_stand_or_leave_it(tmp_path: Path) -> None:
    def row(question: str) -> dict[str, Any]:
        talk = [
            {"role": "system", "content": "Hi."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "A"},
        ]
        return {"messages": talk, "images": [image(1), image(2)]}

    rows = [row("Same?"), row("<image> or <image>?"), row("<image>?")]
    found = imported(tmp_path, pa.Table.from_pylist(rows))
    assert [row["messages"][1]["content"] for row in found] == [
        [IMAGE, IMAGE, TEXT],
        [IMAGE, {"type": "text", "text": " or "}, IMAGE, {"type": "text", "text": "?"}],
    ]
    assert rejected(tmp_path / "in") == [(2, "placeholder_mismatch")]


@pytest.mark.parametrize("column", ["images", "image"])
@pytest.mark.parametrize("wrap", ["struct", "bytes", "path"])
def test_images_may_be_structs_or_bytes_or_paths_below_the_folder(
    tmp_path: Path, column: str, wrap: str
) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    one = {"struct": image(1), "bytes": png(1), "path": {"bytes": None, "path": "1.png"}}[wrap]
    row = {"messages": [user(IMAGE, TEXT), ANSWER], column: [one] if column == "images" else one}
    (found,) = imported(tmp_path, pa.Table.from_pylist([row]), images=tmp_path)
    assert found["images"][0]["bytes"] == png(1)


def test_further_columns_are_kept_as_json_and_what_json_cannot_hold_is_counted(tmp_path: Path) -> None:
    talk = [user(TEXT), ANSWER]
    rows: list[dict[str, Any]] = [
        {"messages": talk, "id": 7, "score": float("nan"), "tags": ["a"], "raw": b"x", "license": "MIT"},
        {"messages": talk, "id": 8, "score": 0.5, "tags": None, "raw": None, "license": None},
    ]
    found = imported(tmp_path, pa.Table.from_pylist(rows))
    assert [(row["id"], row["licence"], json.loads(row["meta"])) for row in found] == [
        ("7", "MIT", {"score": None, "tags": ["a"]}),
        ("8", None, {"score": 0.5}),
    ]
    summary = json.loads((tmp_path / "in" / "summary.json").read_text())
    assert summary["not_carried"] == {"raw": 2}


def test_row_groups_end_at_a_number_of_rows_or_bytes_and_files_at_a_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "ROW_GROUP_BYTES", 2 * len(png(1)))
    monkeypatch.setattr(messages, "FILE_ROWS", 3)
    rows = [{"messages": [user(IMAGE), ANSWER], "images": [image(n)]} for n in range(7)]
    imported(tmp_path, pa.Table.from_pylist(rows))
    files = sorted((tmp_path / "in" / "data").glob("*.parquet"))
    assert [file.name for file in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    metadata = [pq.read_metadata(file) for file in files]
    groups = [[m.row_group(g).num_rows for g in range(m.num_row_groups)] for m in metadata]
    assert groups == [[2, 2], [2, 1]]
    source = build_source("parquet", {"path": str(tmp_path / "in")})
    assert len(source) == 7
    assert source[6].messages[0] == Message("user", "<image>")


def test_nothing_taken_still_writes_a_readable_file(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no Parquet at all")
    summary = import_data("messages", tmp_path / "x.parquet", tmp_path / "in")
    assert (summary["taken"], summary["reasons"]) == (0, {"not_parquet": 1})
    assert pq.read_table(tmp_path / "in" / "data").num_rows == 0


def test_rows_after_a_damaged_page_are_each_accounted_for(tmp_path: Path) -> None:
    rows = [{"messages": [user(TEXT), ANSWER], "note": f"{n} " * 500} for n in range(40)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20, use_dictionary=False)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    column = pq.read_metadata(tmp_path / "x.parquet").row_group(1).column(3)
    assert column.path_in_schema == "note"
    start = column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "x.parquet").write_bytes(data)
    summary = import_data("messages", tmp_path / "x.parquet", tmp_path / "in")
    assert (summary["rows"], summary["taken"]) == (40, 20)
    assert rejected(tmp_path / "in") == [(n, "unreadable_row_group") for n in range(20, 40)]


def test_a_row_group_that_is_too_large_is_not_read_and_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_GROUP_BYTES", 4000)
    rows = [{"messages": [user(TEXT), ANSWER], "note": "x" * size} for size in (3000, 3000, 10, 10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2, use_dictionary=False)
    import_data("messages", tmp_path / "x.parquet", tmp_path / "in")
    assert rejected(tmp_path / "in") == [(0, "row_group_too_large"), (1, "row_group_too_large")]
