"""Broken rows and files of every importable format: each is taken or listed with its reason, and the sums agree."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_broken_inputs import FILES, KEPT, cut, encoded, picture

from infinity_mm.formats.convert import import_data

pytestmark = [
    pytest.mark.integration,
    # Pillow warns about what is wrong with metadata, and reads the pixels all the same.
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
]

GOOD = encoded(picture(80), "PNG")
ASK = {"from": "human", "value": "<image>\nWhat is it?"}
SAY = {"from": "gpt", "value": "Noise."}
TALK = [ASK, SAY]
TEXT_TALK = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
ROW: dict[str, Any] = {"id": "x", "image": "good.png", "conversations": TALK}


def fates(out: Path, num_taken: int, num_rows: int) -> list[str]:
    """One word per input row, in order, checked against the summary and the written rows."""
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    reasons = {line["row"]: line["reason"] for line in lines}
    assert len(reasons) == len(lines) == summary["rejected"]
    assert all(line["file"] and re.fullmatch("[a-z0-9_]+", line["reason"]) for line in lines)
    assert summary["taken"] + summary["rejected"] == summary["rows"] == num_rows
    assert pq.read_table(out / "data").num_rows == summary["taken"] == num_taken
    return [reasons.get(number, KEPT) for number in range(num_rows)]


def check(out: Path, expected: dict[str, str]) -> None:
    """`expected`: name of each input row, in order -> its fate."""
    found = fates(out, sum(fate == KEPT for fate in expected.values()), len(expected))
    assert dict(zip(expected, found)) == expected


# What an image folder refuses by name or shape is a picture like any other when a row names it.
NAMED_BY_A_ROW = {"one_pixel.png": KEPT, "ribbon.png": KEPT, "..jpg": KEPT, ".DS_Store": "not_an_image"}


def test_every_kind_of_image_file(tmp_path: Path) -> None:
    expected = {name: NAMED_BY_A_ROW.get(name, fate) for name, (_, fate) in FILES.items()}
    for name, (make, _) in FILES.items():
        (tmp_path / name).write_bytes(make())
    rows = [{"id": name, "image": name, "conversations": TALK} for name in FILES]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    import_data("llava", tmp_path / "rows.json", tmp_path / "in")
    check(tmp_path / "in", expected)


def turn(**changes: Any) -> dict[str, Any]:
    return {**ROW, "conversations": [{**ASK, **changes}, SAY]}


LLAVA_ROWS: dict[str, tuple[Any, str]] = {
    "fine": (ROW, KEPT),
    "text only": ({"id": "t", "conversations": TEXT_TALK}, KEPT),
    "null image, text": ({"id": "t", "image": None, "conversations": TEXT_TALK}, KEPT),
    "empty list of images, text": ({"id": "t", "image": [], "conversations": TEXT_TALK}, KEPT),
    "the same id again": (ROW, KEPT),
    "no id": ({"image": "good.png", "conversations": TALK}, KEPT),
    "image without text": (turn(value="<image>"), KEPT),
    "absolute path inside": ({**ROW, "image": "ABSOLUTE/good.png"}, KEPT),
    "dots that stay inside": ({**ROW, "image": "folder.png/../good.png"}, KEPT),
    "null image, place": ({**ROW, "image": None}, "placeholder_mismatch"),
    "image missing from disk": ({**ROW, "image": "gone.png"}, "missing_image"),
    "second image missing": (
        {**turn(value="<image><image>"), "image": ["good.png", "gone.png"]},
        "missing_image",
    ),
    "absolute path": ({**ROW, "image": "/etc/hostname"}, "image_leaves_root"),
    "dots": ({**ROW, "image": "../outside.png"}, "image_leaves_root"),
    "more dots": ({**ROW, "image": "a/../../../../etc/passwd"}, "image_leaves_root"),
    "link out of the folder": ({**ROW, "image": "link.png"}, "symlink_leaves_root"),
    "linked folder": ({**ROW, "image": "linked/outside.png"}, "symlink_leaves_root"),
    "loop of links": ({**ROW, "image": "loop.png"}, "symlink_loop"),
    "a pipe": ({**ROW, "image": "pipe.png"}, "not_a_regular_file"),
    "a folder": ({**ROW, "image": "folder.png"}, "is_a_folder"),
    "a URL": ({**ROW, "image": "http://127.0.0.1/x.png"}, "remote_image"),
    "a file URL": ({**ROW, "image": "file:///etc/hostname"}, "remote_image"),
    "null character": ({**ROW, "image": "good\0.png"}, "bad_image_path"),
    "name too long": ({**ROW, "image": "x" * 5000}, "bad_image_path"),
    "image is a number": ({**ROW, "image": 7}, "image_not_a_string"),
    "image is an object": ({**ROW, "image": {"path": "good.png"}}, "image_not_a_string"),
    "list with null": ({**ROW, "image": ["good.png", None]}, "image_not_a_string"),
    "list with an empty name": ({**ROW, "image": [""]}, "image_not_a_string"),
    "video": ({"id": "v", "video": "x.mp4", "conversations": TALK}, "video_not_supported"),
    "empty conversation": ({**ROW, "conversations": []}, "empty_conversation"),
    "system only": ({**ROW, "conversations": [{"from": "system", "value": "x"}]}, "empty_conversation"),
    "no conversation": ({"id": "n", "image": "good.png"}, "conversations_not_a_list"),
    "conversation is text": ({**ROW, "conversations": "hi"}, "conversations_not_a_list"),
    "turn is null": ({**ROW, "conversations": [ASK, None]}, "turn_not_an_object"),
    "answer first": ({**ROW, "conversations": [SAY, ASK]}, "roles_do_not_alternate"),
    "question last": ({**ROW, "conversations": [ASK, SAY, ASK]}, "roles_do_not_alternate"),
    "late system": (
        {**ROW, "conversations": [*TALK, {"from": "system", "value": "x"}]},
        "roles_do_not_alternate",
    ),
    "unknown role": (turn(**{"from": "tool"}), "unknown_role"),
    "role is a list": (turn(**{"from": ["human"]}), "unknown_role"),
    "value is null": (turn(value=None), "value_not_a_string"),
    "value is a list": (turn(value=["x"]), "value_not_a_string"),
    "empty answer": ({**ROW, "conversations": [ASK, {**SAY, "value": "  \n"}]}, "empty_turn"),
    "empty question": ({"id": "e", "conversations": [{**ASK, "value": ""}, SAY]}, "empty_turn"),
    "two places": (turn(value="<image><image>"), "placeholder_mismatch"),
    "no place": (turn(value="What?"), "placeholder_mismatch"),
    "place in the answer": (
        {**ROW, "conversations": [{**ASK, "value": "What?"}, {**SAY, "value": "<image>"}]},
        "image_not_in_user_turn",
    ),
    "nan": ({**ROW, "score": float("nan")}, "nan_in_row"),
    "lone surrogate": ({**ROW, "note": "\udc80"}, "invalid_unicode"),
    "surrogate in the id": ({**ROW, "id": "m\ud800"}, "invalid_unicode"),
    "id is true": ({**ROW, "id": True}, "bad_id"),
    "id is empty": ({**ROW, "id": ""}, "bad_id"),
    "id is a list": ({**ROW, "id": [1]}, "bad_id"),
    "row is null": (None, "row_not_an_object"),
    "row is a list": ([1], "row_not_an_object"),
    "row is text": ("x", "row_not_an_object"),
}


def test_every_kind_of_llava_row(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "folder.png").mkdir(parents=True)
    (root / "good.png").write_bytes(GOOD)
    (tmp_path / "outside.png").write_bytes(GOOD)
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "linked").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    text = json.dumps([row for row, _ in LLAVA_ROWS.values()]).replace("ABSOLUTE", str(root))
    (root / "rows.json").write_text(text)
    import_data("llava", root / "rows.json", tmp_path / "in")
    check(tmp_path / "in", {name: fate for name, (_, fate) in LLAVA_ROWS.items()})


LINE = json.dumps({"id": "1", "conversations": TEXT_TALK}).encode()
LLAVA_FILES: dict[str, tuple[bytes, list[str]]] = {
    "cut.json": (b"[" + LINE + b', {"id": "2", "ima', [KEPT, "invalid_json"]),
    "object.json": (b'{\n "rows": []\n}', ["not_a_list"]),
    "empty.json": (b"", ["empty_file"]),
    "blank.json": (b" \n\n", ["empty_file"]),
    "no_rows.json": (b"[]", ["empty_file"]),
    "number.json": (b"7", ["not_a_list"]),
    "deep.json": (b"[" * 200_000, ["invalid_json"]),
    "deep_in_a_row.jsonl": (LINE + b'\n{"id": "2", "x": ' + b"[" * 200_000 + b"\n", [KEPT, "invalid_json"]),
    "trailing.json": (b"[" + LINE + b"] x", [KEPT, "invalid_json"]),
    "missing_comma.json": (b"[" + LINE + LINE + b"]", [KEPT, "invalid_json"]),
    "not_utf8.jsonl": (b'{"id": "\xff"}\n' + LINE, ["invalid_unicode", KEPT]),
    "utf16.jsonl": (LINE.decode().encode("utf-16"), ["invalid_json"]),
    "byte_order_mark.jsonl": (b"\xef\xbb\xbf" + LINE, [KEPT]),
    "broken_line.jsonl": (b"{oops\n" + LINE, ["invalid_json", KEPT]),
    "huge_number.jsonl": (b'{"id": ' + b"9" * 5000 + b"}\n" + LINE, ["invalid_json", KEPT]),
}


@pytest.mark.parametrize("name", LLAVA_FILES)
def test_every_kind_of_llava_file(tmp_path: Path, name: str) -> None:
    data, expected = LLAVA_FILES[name]
    (tmp_path / name).write_bytes(data)
    import_data("llava", tmp_path / name, tmp_path / "in")
    assert fates(tmp_path / "in", expected.count(KEPT), len(expected)) == expected


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


TEXT = {"type": "text", "text": "What?"}
IMAGE = {"type": "image", "text": None}
ANSWER = say("assistant", [TEXT])
PICTURE = {"bytes": GOOD, "path": "good.png"}
MESSAGES_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "fine": ({"messages": [say("user", [IMAGE, TEXT]), ANSWER], "images": [PICTURE]}, KEPT),
    "text only": ({"messages": [say("user", [TEXT]), ANSWER], "images": []}, KEPT),
    "null images": ({"messages": [say("user", [TEXT]), ANSWER], "images": None}, KEPT),
    "no name": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": GOOD, "path": None}]},
        KEPT,
    ),
    "null messages": ({"messages": None, "images": []}, "messages_not_a_list"),
    "no messages": ({"messages": [], "images": []}, "empty_conversation"),
    "null turn": ({"messages": [None], "images": []}, "turn_not_an_object"),
    "unknown role": ({"messages": [say("tool", [TEXT])], "images": []}, "unknown_role"),
    "null role": ({"messages": [say(None, [TEXT])], "images": []}, "unknown_role"),  # type: ignore[arg-type]
    "null content": ({"messages": [say("user", None), ANSWER], "images": []}, "content_missing"),
    "empty content": ({"messages": [say("user", []), ANSWER], "images": []}, "empty_turn"),
    "null text": (
        {"messages": [say("user", [{"type": "text", "text": None}]), ANSWER], "images": []},
        "value_not_a_string",
    ),
    "a video part": (
        {"messages": [say("user", [{"type": "video", "text": None}]), ANSWER], "images": []},
        "unknown_part_type",
    ),
    "a null part": ({"messages": [say("user", [None]), ANSWER], "images": []}, "unknown_part_type"),
    "a place in a text": (
        {"messages": [say("user", [{"type": "text", "text": "<image>"}]), ANSWER], "images": [PICTURE]},
        "placeholder_in_text",
    ),
    "image in the answer": (
        {"messages": [say("user", [TEXT]), say("assistant", [IMAGE])], "images": [PICTURE]},
        "image_not_in_user_turn",
    ),
    "one image too many": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [PICTURE, PICTURE]},
        "placeholder_mismatch",
    ),
    "question last": ({"messages": [say("user", [TEXT])], "images": []}, "roles_do_not_alternate"),
    "null image": ({"messages": [say("user", [IMAGE]), ANSWER], "images": [None]}, "null_image"),
    "neither bytes nor path": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": None, "path": None}]},
        "null_image",
    ),
    "empty bytes": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": b"", "path": None}]},
        "empty_file",
    ),
    "truncated bytes": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": cut(GOOD), "path": None}]},
        "truncated",
    ),
    "bytes with a path up": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": GOOD, "path": "../x.png"}]},
        "image_leaves_root",
    ),
    "path only, missing": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": None, "path": "gone.png"}]},
        "missing_image",
    ),
    "path only, absolute": (
        {"messages": [say("user", [IMAGE]), ANSWER], "images": [{"bytes": None, "path": "/etc/hostname"}]},
        "image_leaves_root",
    ),
}


def test_every_kind_of_messages_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row for row, _ in MESSAGES_ROWS.values()])
    pq.write_table(table, tmp_path / "x.parquet")
    import_data("messages", tmp_path / "x.parquet", tmp_path / "in")
    check(tmp_path / "in", {name: fate for name, (_, fate) in MESSAGES_ROWS.items()})


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def with_invalid_text() -> bytes:
    """A text column whose first value is no UTF-8, in a file that is otherwise fine."""
    talk = [say("user", [TEXT]), ANSWER]
    data = io.BytesIO()
    table = pa.Table.from_pylist([{"messages": talk, "note": "AAAA"}, {"messages": talk, "note": "BBBB"}])
    pq.write_table(table, data, compression="none", use_dictionary=False, write_statistics=False)
    return data.getvalue().replace(b"\4\0\0\0AAAA", b"\4\0\0\0\xff\xfeAA")


OK = {"messages": [say("user", [TEXT]), ANSWER]}
MESSAGES_FILES: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "empty file": (lambda: b"", ["empty_file"]),
    "no rows": (lambda: parquet([OK])[:0] or parquet_without_rows(), ["empty_file"]),
    "no Parquet": (lambda: b"PAR1 is how it begins", ["not_parquet"]),
    "cut": (lambda: parquet([OK])[:-20], ["not_parquet"]),
    "no messages": (lambda: parquet([{"text": "x"}]), ["no_messages_column"]),
    "messages are text": (
        lambda: parquet([{"messages": "x"}, {"messages": "y"}]),
        ["messages_not_a_list"] * 2,
    ),
    "images are text": (lambda: parquet([{**OK, "images": ["a.png"]}]), ["images_not_bytes"]),
    "image is a number": (lambda: parquet([{**OK, "image": 7}]), ["images_not_bytes"]),
    "tool calls": (
        lambda: parquet([{"messages": [say("user", "x"), {**say("assistant", "y"), "tool_calls": ["f"]}]}]),
        ["tool_calls_not_supported"],
    ),
    "image inside a part": (
        lambda: parquet([{"messages": [say("user", [{"type": "image", "image": {"bytes": GOOD}}]), ANSWER]}]),
        ["image_in_part"],
    ),
    "id is a fraction": (lambda: parquet([{**OK, "id": 0.5}]), ["bad_id"]),
    "text that is no UTF-8": (with_invalid_text, ["invalid_unicode", KEPT]),
    "surrogate in our meta": (lambda: parquet([{**OK, "meta": '{"a": "\\ud800"}'}]), ["invalid_unicode"]),
}


def parquet_without_rows() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"messages": pa.array([], pa.list_(pa.string()))}), sink)
    return sink.getvalue()


@pytest.mark.parametrize("name", MESSAGES_FILES)
def test_every_kind_of_messages_file(tmp_path: Path, name: str) -> None:
    make, expected = MESSAGES_FILES[name]
    (tmp_path / "x.parquet").write_bytes(make())
    import_data("messages", tmp_path / "x.parquet", tmp_path / "in")
    assert fates(tmp_path / "in", expected.count(KEPT), len(expected)) == expected


def sample(**changes: Any) -> bytes:
    entry = {"id": "1", "conversations": TALK, "image": "a.png", **changes}
    return json.dumps(entry).encode()


Members = list[tuple[str, bytes | str]]
"""Name and content; text in place of bytes is the target of a link."""
TARS: dict[str, tuple[Members, list[str]]] = {
    "fine": ([("1.json", sample()), ("1.jpg", GOOD)], [KEPT]),
    "jpg first": ([("1.jpg", GOOD), ("1.json", sample())], [KEPT]),
    "text only": ([("1.json", sample(conversations=TEXT_TALK)), ("1.jpg", b"")], [KEPT]),
    "a machine's path as name": ([("1.json", sample(image="/data/../x.png")), ("1.jpg", GOOD)], [KEPT]),
    "no jpg": ([("1.json", sample()), ("2.json", sample()), ("2.jpg", GOOD)], ["no_jpg_member", KEPT]),
    "no json": ([("1.jpg", GOOD), ("2.json", sample()), ("2.jpg", GOOD)], ["no_json_member", KEPT]),
    "parts not side by side": (
        [("1.json", sample()), ("2.json", sample()), ("1.jpg", GOOD)],
        ["no_jpg_member", "no_jpg_member", "no_json_member"],
    ),
    "zero bytes but a place": ([("1.json", sample()), ("1.jpg", b"")], ["placeholder_mismatch"]),
    "bytes but no place": (
        [("1.json", sample(conversations=TEXT_TALK)), ("1.jpg", GOOD)],
        ["placeholder_mismatch"],
    ),
    "truncated picture": ([("1.json", sample()), ("1.jpg", cut(GOOD))], ["truncated"]),
    "a page as picture": ([("1.json", sample()), ("1.jpg", b"<html>404</html>")], ["not_an_image"]),
    "broken json": ([("1.json", b"{oops"), ("1.jpg", GOOD)], ["invalid_json"]),
    "empty json": ([("1.json", b""), ("1.jpg", GOOD)], ["invalid_json"]),
    "json is a list": ([("1.json", b"[]"), ("1.jpg", GOOD)], ["row_not_an_object"]),
    "json is no UTF-8": ([("1.json", b'"\xff"'), ("1.jpg", GOOD)], ["invalid_unicode"]),
    "deep json": ([("1.json", b"[" * 200_000), ("1.jpg", GOOD)], ["nested_too_deep"]),
    "a further member": (
        [("1.json", sample()), ("1.jpg", GOOD), ("1.cls", b"7")],
        ["unknown_member"],
    ),
    "two json members": ([("1.json", sample()), ("1.json", sample()), ("1.jpg", GOOD)], ["double_member"]),
    "no suffix": ([("README", b"x"), ("1.json", sample()), ("1.jpg", GOOD)], ["member_without_suffix", KEPT]),
    "hidden": ([(".x", b"x"), ("1.json", sample()), ("1.jpg", GOOD)], ["member_without_suffix", KEPT]),
    "dots": ([("../1.json", sample()), ("1.json", sample()), ("1.jpg", GOOD)], ["member_leaves_root", KEPT]),
    "absolute": (
        [("/etc/1.json", sample()), ("1.json", sample()), ("1.jpg", GOOD)],
        ["member_leaves_root", KEPT],
    ),
    "link as picture": ([("1.json", sample()), ("1.jpg", "/etc/hostname")], ["member_is_a_link"]),
    "name that is no UTF-8": (
        [("\udcff.json", sample()), ("1.json", sample()), ("1.jpg", GOOD)],
        ["name_not_utf8", KEPT],
    ),
    "no members": ([], ["empty_file"]),
}


def tar(members: Members) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("name", TARS)
def test_every_kind_of_sample_in_a_tar(tmp_path: Path, name: str) -> None:
    members, expected = TARS[name]
    (tmp_path / "x.tar").write_bytes(tar(members))
    import_data("infinity-mm", tmp_path / "x.tar", tmp_path / "in")
    assert fates(tmp_path / "in", expected.count(KEPT), len(expected)) == expected


WHOLE = tar([("1.json", sample()), ("1.jpg", GOOD)])
TAR_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["empty_file"]),
    "no tar": (b"x" * 5000, ["not_a_tar"]),
    "shorter than a header": (b"x" * 100, ["not_a_tar"]),
    "no end": (WHOLE[: 512 * 3 + (len(GOOD) + 511) // 512 * 512], [KEPT, "broken_archive"]),
    "cut": (WHOLE[: 512 * 3 + 100], ["no_jpg_member", "broken_archive"]),
    "damaged header": (WHOLE[:1024] + b"\xff" * 512 + WHOLE[1536:], ["no_jpg_member", "broken_archive"]),
}


@pytest.mark.parametrize("name", TAR_FILES)
def test_every_kind_of_broken_tar(tmp_path: Path, name: str) -> None:
    data, expected = TAR_FILES[name]
    (tmp_path / "x.tar").write_bytes(data)
    import_data("infinity-mm", tmp_path / "x.tar", tmp_path / "in")
    assert fates(tmp_path / "in", expected.count(KEPT), len(expected)) == expected


COCO_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["empty_file"]),
    "no json": (b"{oops", ["invalid_json"]),
    "a list": (b"[]", ["not_an_object"]),
    "no images": (b'{"annotations": []}', ["no_images"]),
    "no annotations": (b'{"images": []}', ["no_annotations"]),
    "images are an object": (b'{"images": {}, "annotations": []}', ["no_images"]),
    "nothing in it": (b'{"images": [], "annotations": []}', ["empty_file"]),
    "entries of every kind": (
        b'{"images": [null, {"id": 1}, {"id": 2, "file_name": "a.png"}, {"file_name": "a.png"},'
        b' {"id": [1], "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "x"},'
        b' {"image_id": 2, "caption": 7}, {"image_id": NaN, "caption": "x"}, {"image_id": null, "caption": "x"}]}',
        [
            *("row_not_an_object", "image_not_a_string", "no_caption", "no_id", "bad_id"),
            *("value_not_a_string", "nan_in_row", "unknown_image_id"),
        ],
    ),
}


@pytest.mark.parametrize("name", COCO_FILES)
def test_every_kind_of_coco_file(tmp_path: Path, name: str) -> None:
    data, expected = COCO_FILES[name]
    (tmp_path / "captions.json").write_bytes(data)
    import_data("coco", tmp_path / "captions.json", tmp_path / "in")
    assert fates(tmp_path / "in", expected.count(KEPT), len(expected)) == expected
