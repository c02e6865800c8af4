from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from format_data import jpg, png, read_jsonl, rejected, talk

from infinity_mm.data.conversation import Message
from infinity_mm.data.sources import build_source
from infinity_mm.formats.convert import export_data, import_data

BAD = {20: "missing_image", 60: "missing_image", 80: "placeholder_mismatch"}


def hundred_rows(folder: Path) -> list[dict[str, Any]]:
    """100 rows: 5 of text, 3 with two images, 2 whose image is missing, 1 with a placeholder too many."""
    (folder / "pictures" / "coco").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(100):
        name = f"coco/{number:03d}.{'jpg' if number % 2 else 'png'}"
        if BAD.get(number) != "missing_image":
            (folder / "pictures" / name).write_bytes(jpg(number) if number % 2 else png(number))
        row: dict[str, Any] = {
            "id": f"row {number}",
            "image": name,
            "conversations": talk(f"<image>\nWhat is {number}? 狗", f"It is {number}."),
        }
        if number in (3, 33, 43, 53, 63):
            del row["image"]
            row["conversations"] = talk(f"How much is {number} and 1?", f"{number + 1}")
        elif number in (10, 11, 12):
            row["image"] = [name, "coco/000.png"]
            row["conversations"] = talk("<image>\n<image>\nSame?") + talk(" And then?\n", "No.\n")
        elif number == 80:
            row["conversations"] = talk("<image> and <image>?")
        elif number == 5:
            row["conversations"] = [{"from": "system", "value": "Be brief."}, *talk("What is it?\n<image>")]
            row |= {"source": "LAION", "license": "CC-BY-4.0", "task": {"kind": ["vqa"], "n": 1.5, "x": None}}
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return rows


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("llava")
    rows = hundred_rows(folder)
    summary = import_data("llava", folder / "rows.json", folder / "in", images=folder / "pictures")
    export_data(folder / "in", "llava", folder / "out")
    return rows, summary, folder


def test_after_import_and_export_the_taken_rows_are_identical_and_in_order(trip: Any) -> None:
    rows, _, folder = trip
    assert json.loads((folder / "out" / "data.json").read_text(encoding="utf-8")) == [
        row for number, row in enumerate(rows) if number not in BAD
    ]


def test_after_import_and_export_the_image_bytes_are_identical(trip: Any) -> None:
    rows, _, folder = trip
    names: set[str] = set()
    for number, row in enumerate(rows):
        image = row.get("image", [])
        names |= set() if number in BAD else {image} if isinstance(image, str) else set(image)
    written = {
        file.relative_to(folder / "out" / "images").as_posix(): file.read_bytes()
        for file in (folder / "out" / "images").rglob("*.*")
    }
    assert written == {name: (folder / "pictures" / name).read_bytes() for name in names}


def test_exactly_the_bad_rows_are_listed_each_with_its_reason(trip: Any) -> None:
    _, summary, folder = trip
    assert read_jsonl(folder / "in" / "rejected.jsonl") == [
        {
            "id": f"row {number}",
            "row": number,
            "file": "rows.json",
            "reason": reason,
            "detail": "2 <image> for 1 images" if number == 80 else f"coco/{number:03d}.png",
        }
        for number, reason in BAD.items()
    ]
    assert summary | {"image_bytes": 0} == {
        "read": "llava",
        "written": "messages",
        "rows": 100,
        "taken": 97,
        "rejected": 3,
        "text_only": 5,
        "multi_image": 3,
        "images": 89 + 2 * 3,
        "image_bytes": 0,
        "reasons": {"missing_image": 2, "placeholder_mismatch": 1},
        "not_carried": {},
    }
    assert rejected(folder / "out") == []


def test_the_trainer_reads_the_import_with_text_only_and_multi_image_rows(trip: Any) -> None:
    _, _, folder = trip
    source = build_source("parquet", {"path": str(folder / "in")})
    assert len(source) == 97
    assert source[3].images == ()
    assert source[3].messages == (Message("user", "How much is 3 and 1?"), Message("assistant", "4"))
    assert [image.size for image in source[10].images] == [(8, 6), (8, 6)]
    assert source[10].messages[0] == Message("user", "<image><image>Same?")
    assert source[5].domain == "LAION"
    assert [message.role for message in source[5].messages] == ["system", "user", "assistant"]


def test_ids_may_be_numbers_or_missing_or_double(tmp_path: Path) -> None:
    rows = [{"id": 7}, {"id": "7"}, {}, {"id": None}, {"id": True}]
    lines = [json.dumps({**row, "conversations": talk("Well?")}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    import_data("llava", tmp_path / "rows.jsonl", tmp_path / "in")
    export_data(tmp_path / "in", "llava", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [row.get("id", "none") for row in written] == ["7", "7", "none", "none"]
    assert rejected(tmp_path / "in") == [(4, "bad_id")]


def test_two_pictures_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(png(seed))
        row = {"image": "x.png", "conversations": talk("<image>?")}
        (tmp_path / folder / "rows.json").write_text(json.dumps([row]))
        import_data("llava", tmp_path / folder / "rows.json", tmp_path / "both" / folder)
    export_data(tmp_path / "both", "llava", tmp_path / "out")
    names = [row["image"] for row in json.loads((tmp_path / "out" / "data.json").read_text())]
    assert names[0] == "x.png"
    assert len(names[1]) == 64 + len(".png")
    assert [(tmp_path / "out" / "images" / name).read_bytes() for name in names] == [png(1), png(2)]


def test_what_a_turn_holds_beside_its_text_is_counted_as_not_carried(tmp_path: Path) -> None:
    turns = talk("Well?")
    rows = [{"conversations": [{**turns[0], "weight": 1}, turns[1]]}, {"conversations": turns}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    summary = import_data("llava", tmp_path / "rows.json", tmp_path / "in")
    assert summary["not_carried"] == {"conversations.weight": 1}


def test_source_and_licence_fill_in_where_a_row_names_none(tmp_path: Path) -> None:
    rows = [{"conversations": talk("1?")}, {"conversations": talk("2?"), "source": "own"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    import_data("llava", tmp_path / "rows.json", tmp_path / "in", source="given", licence="MIT")
    export_data(tmp_path / "in", "llava", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [(row["source"], row["license"]) for row in written] == [("given", "MIT"), ("own", "MIT")]
