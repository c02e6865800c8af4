"""Readers of training data, by kind."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_data import picture

from infinity_mm.data.conversation import Conversation, Message
from infinity_mm.data.readers import parquet
from infinity_mm.data.sources import build_source
from infinity_mm.errors import UserError
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.vision.images import BadImage


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


def test_jsonl_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    answer = "one\u2028two\x85three"
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
    lines = [json.dumps({"id": str(i), "conversations": turns}, ensure_ascii=False) for i in range(2)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = build_source("llava_json", {"path": str(tmp_path / "data.jsonl"), "image_folder": str(tmp_path)})
    assert [source[i].messages[1].text for i in range(len(source))] == [answer, answer]


def test_a_missing_image_and_a_broken_row_are_facts_about_a_sample(tmp_path: Path) -> None:
    row = {"id": "1", "image": "none.png", "conversations": [{"from": "human", "value": "<image>?"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n{broken\n", encoding="utf-8")
    source = build_source("llava_json", {"path": str(tmp_path / "data.jsonl"), "image_folder": str(tmp_path)})
    assert (source.outline(0).id, source.outline(0).problem) == (
        "1",
        f"missing_image: {tmp_path / 'none.png'}",
    )
    with pytest.raises(BadImage, match="missing_image"):
        source[0]
    with pytest.raises(BadRow, match="invalid_json"):
        source[1]


def write_tar(path: Path, samples: list[tuple[str, dict[str, Any], bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, row, data in samples:
            for suffix, content in (("json", json.dumps(row).encode()), ("jpg", data)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def tar_row(id_: str, question: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]
    return {"id": id_, "source": "ocr", "conversations": turns, "image": f"{id_}.jpg"}


def test_infinity_mm_tars_are_read_where_they_lie_and_no_bytes_mean_text(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set/1.tar", [("000", tar_row("c", "<image>\nWhat?"), png(11))])
    write_tar(
        tmp_path / "set/0.tar",
        [("000", tar_row("a", "<image>\nWhat?"), png(9)), ("001", tar_row("b", "Hello?"), b"")],
    )
    for places in (None, str(tmp_path / "places.npz"), str(tmp_path / "places.npz")):
        source = build_source("infinity_mm", {"path": str(tmp_path / "set"), "places": places})
        talks = [source[i] for i in range(len(source))]
        assert [talk.id for talk in talks] == ["a", "b", "c"]
        assert [[image.size for image in talk.images] for talk in talks] == [[(9, 8)], [], [(11, 8)]]
        assert talks[0].messages == (Message("user", "<image>What?"), Message("assistant", "red"))
        assert [source.outline(i).image_sizes for i in range(3)] == [((9, 8),), (), ((11, 8),)]
        assert source.outline(0).domain == "ocr"
        assert pickle.loads(pickle.dumps(source))[2].id == "c"


def test_tars_are_looked_at_once_and_not_for_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "0.tar", [("000", tar_row("a", "Hello?"), b""), ("001", tar_row("b", "?"), b"")])
    source = build_source("infinity_mm", {"path": str(tmp_path), "places": str(tmp_path / "places.npz")})
    assert source[0].id == "a"
    asked: list[Path] = []
    stat = Path.stat

    def counted(path: Path, **keys: Any) -> Any:
        asked.append(path)
        return stat(path, **keys)

    monkeypatch.setattr(Path, "stat", counted)
    assert [source[i].id for i in range(len(source))] == ["a", "b"]
    assert asked == []


def test_row_groups_stay_in_memory_up_to_a_number_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path, ["a", "b", "c", "d", "e", "f"])
    source = build_source("parquet", {"path": str(tmp_path)})
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(file: Any, group: int) -> Any:
        read.append(group)
        return whole(file, group)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for max_bytes, groups in ((1 << 20, [0, 1, 2]), (1, [0, 1, 2, 0, 1, 2])):
        monkeypatch.setattr(parquet, "_RECENT", parquet._Recent(max_bytes))
        assert [source[i].id for i in (0, 2, 5, 1, 3, 4)] == ["a", "c", "f", "b", "d", "e"]
        assert read == groups
        read.clear()


def test_a_tar_that_breaks_off_is_not_trained_on_without_a_word(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("000", tar_row("a", "<image>"), png(9)), ("001", tar_row("b", "?"), b"")])
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:1500])
    with pytest.raises(UserError, match=r"0\.tar cannot be read to its end"):
        len(build_source("infinity_mm", {"path": str(tmp_path / "0.tar")}))


def chat_rows() -> list[dict[str, Any]]:
    parts = [
        {"type": "image", "text": None},
        {"type": "text", "text": "and"},
        {"type": "image", "text": None},
    ]
    return [
        {
            "images": [{"bytes": png(9), "path": None}, {"bytes": png(10), "path": None}],
            "messages": [{"role": "user", "content": parts},
                         {"role": "assistant", "content": [{"type": "text", "text": "two"}]}],
        },
        {
            "images": [],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                         {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}],
        },
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["saved", "saved_dict", "parquet", "arrow"])
def test_hugging_face_chat_data_is_read_in_every_form_it_is_kept_in(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    text = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    message = {"role": datasets.Value("string"), "content": datasets.List(text)}
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()), "messages": datasets.List(message)}
    )
    rows = datasets.Dataset.from_list(chat_rows(), features=features)
    path = tmp_path / "data"
    match form:
        case "saved":
            rows.save_to_disk(str(path))
        case "saved_dict":
            datasets.DatasetDict({"train": rows}).save_to_disk(str(path))
        case "parquet":
            path.mkdir()
            rows.to_parquet(str(path / "a.parquet"))
        case "arrow":
            rows.save_to_disk(str(tmp_path / "saved"))
            (file,) = (tmp_path / "saved").glob("*.arrow")
            path.mkdir()
            file.rename(path / "a.arrow")
    source = build_source("chat", {"path": str(path)})
    assert [source[i].id for i in range(len(source))] == ["0", "1"]
    assert source[0].messages == (Message("user", "<image>and<image>"), Message("assistant", "two"))
    assert [image.size for image in source[0].images] == [(9, 8), (10, 8)]
    assert source.outline(0).image_sizes == ((9, 8), (10, 8))
    assert source.outline(1).num_images == 0
    assert source.fingerprint == build_source("chat", {"path": str(path)}).fingerprint
    assert pickle.loads(pickle.dumps(source))[1].messages == (
        Message("user", "Hello"),
        Message("assistant", "Hi"),
    )


def test_a_chat_column_or_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"conversations": [{"from": "human", "value": "?"}], "image": None}])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path))
    with pytest.raises(UserError, match="no split `test`, only train"):
        len(build_source("chat", {"path": str(tmp_path), "split": "test"}))
    with pytest.raises(UserError, match="no column `messages`, only"):
        len(build_source("chat", {"path": str(tmp_path)}))
    found = build_source("chat", {"path": str(tmp_path), "messages": "conversations", "images": "image"})
    assert found[0].messages == (Message("user", "?"),)


def test_an_unknown_kind_and_a_wrong_option_name_the_fix() -> None:
    with pytest.raises(UserError, match="use one of parquet, infinity_mm, llava_json, chat, windtunnel"):
        build_source("parket", {})
    with pytest.raises(UserError, match="do not fit"):
        build_source("parquet", {"folder": "x"})


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Parquet file at"):
        len(build_source("parquet", {"path": str(tmp_path / "none.parquet")}))
