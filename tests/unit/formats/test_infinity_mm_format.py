from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from format_data import jpg, png, read_jsonl, read_tar, rejected, talk, write_tar

from infinity_mm.formats import infinity_mm
from infinity_mm.formats.convert import export_data, import_data

TAGS = {"ram++_tags": ["dog", "grass"], "ram++_tags_score": [6.5, 1.9], "phash": 13832185291274213111}
SAMPLES: list[tuple[dict[str, Any], bytes]] = [
    (
        {
            "id": "a",
            "source": "LVIS",
            "conversations": talk("<image>\nWhat?", "狗"),
            "image": "lvis/1.jpg",
            **TAGS,
        },
        jpg(1),
    ),
    ({"id": "b", "source": "Infinity-Instruct", "conversations": talk("2 + 2?", "4"), "image": ""}, b""),
    (
        {
            "id": 3,
            "source": "x",
            "conversations": talk("<image>\nOld?"),
            "image": "/share/data/3.PNG",
            "phash": "f0",
        },
        png(3),
    ),
    ({"id": "d", "source": "x", "conversations": talk("Hm?")}, b""),
]


def members(samples: list[tuple[dict[str, Any], bytes]]) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for number, (entry, data) in enumerate(samples):
        found.append((f"./part/{number:04d}.json", json.dumps(entry).encode()))
        found.append((f"./part/{number:04d}.jpg", data))
    return found


def header_of(path: Path, number: int) -> int:
    """Where a member begins, in bytes."""
    with tarfile.open(path) as archive:
        return archive.getmembers()[number].offset


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    write_tar(tmp_path / "stage4" / "a" / "0.tar", members(SAMPLES[:3]))
    write_tar(tmp_path / "stage4" / "b" / "0.tar", members(SAMPLES[3:]))
    summary = import_data("infinity-mm", tmp_path / "stage4", tmp_path / "in")
    assert (summary["rows"], summary["taken"], summary["text_only"], summary["images"]) == (4, 4, 2, 2)
    return tmp_path


def test_samples_come_back_with_bytes_tags_and_phash(imported: Path) -> None:
    export_data(imported / "in", "infinity-mm", imported / "out")
    found = read_tar(imported / "out" / "00000.tar")
    assert list(found) == [f"{number:09d}.{suffix}" for number in range(4) for suffix in ("jpg", "json")]
    for number, (entry, data) in enumerate(SAMPLES):
        assert found[f"{number:09d}.jpg"] == data
        assert json.loads(found[f"{number:09d}.json"]) == entry | {"id": str(entry["id"])}


def test_a_text_only_sample_is_a_jpg_of_zero_bytes_both_ways(imported: Path) -> None:
    export_data(imported / "in", "infinity-mm", imported / "out")
    found = read_tar(imported / "out" / "00000.tar")
    assert (found["000000001.jpg"], found["000000003.jpg"]) == (b"", b"")
    summary = import_data("infinity-mm", imported / "out", imported / "again")
    assert summary["text_only"] == 2
    columns = ["id", "messages", "source", "meta"]
    first, second = (
        pq.read_table(imported / name / "data", columns=columns).to_pylist() for name in ("in", "again")
    )
    assert first == second


def test_tags_and_phash_stay_when_the_data_goes_on_as_llava(imported: Path) -> None:
    export_data(imported / "in", "llava", imported / "out")
    rows = json.loads((imported / "out" / "data.json").read_text(encoding="utf-8"))
    assert {key: rows[0][key] for key in TAGS} == TAGS
    # A text-only row has no `image` in LLaVA; a path of another machine is replaced by a name in the folder.
    assert [row.get("image") for row in rows] == ["lvis/1.jpg", None, "part/0002.PNG", None]
    assert "image" not in rows[1]


def test_several_images_and_what_would_not_read_back_are_listed(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png(int(name[0])))
    rows = [
        {"id": "two", "image": ["1.png", "2.png"], "conversations": talk("<image><image>?")},
        {"id": "one", "image": "1.png", "conversations": talk("<image>?")},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    import_data("llava", tmp_path / "rows.json", tmp_path / "in")
    summary = export_data(tmp_path / "in", "infinity-mm", tmp_path / "out")
    assert (summary["rows"], summary["taken"], summary["rejected"]) == (2, 1, 1)
    assert rejected(tmp_path / "out") == [(0, "several_images")]


def test_a_tar_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    write_tar(tmp_path / "whole.tar", members(SAMPLES))
    data = (tmp_path / "whole.tar").read_bytes()
    end_of_second = header_of(tmp_path / "whole.tar", 4)
    for name, length in (("cut_in_a_member", end_of_second + 600), ("cut_between_members", end_of_second)):
        (tmp_path / f"{name}.tar").write_bytes(data[:length])
        summary = import_data("infinity-mm", tmp_path / f"{name}.tar", tmp_path / name)
        assert summary["taken"] == 2
        assert summary["reasons"]["broken_archive"] == 1


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members(SAMPLES))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[header_of(tmp_path / "a.tar", 2) + 150] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    import_data("infinity-mm", tmp_path / "a.tar", tmp_path / "in")
    assert rejected(tmp_path / "in") == [(1, "broken_archive")]
    assert read_jsonl(tmp_path / "in" / "rejected.jsonl")[0]["file"] == "a.tar"


def test_tars_are_closed_at_a_number_of_rows(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infinity_mm, "TAR_ROWS", 3)
    export_data(imported / "in", "infinity-mm", imported / "out")
    assert [len(read_tar(imported / "out" / f"0000{n}.tar")) for n in range(2)] == [6, 2]
