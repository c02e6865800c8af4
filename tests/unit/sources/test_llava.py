from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinity_mm.errors import UserError
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.sources.llava import LlavaSource

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A duck."}]
GOOD = {"id": "1", "image": "duck.jpg", "conversations": TALK}


def source(tmp_path: Path, text: str | bytes, name: str = "rows.json", **options: Any) -> LlavaSource:
    (tmp_path / "duck.jpg").write_bytes(b"x")
    data = text.encode() if isinstance(text, str) else text
    (tmp_path / name).write_bytes(data)
    return LlavaSource(name="l", path=str(tmp_path / name), image_root=str(tmp_path), **options)


def problems(tmp_path: Path, text: str | bytes, name: str = "rows.json", **options: Any) -> list[str | None]:
    return [item.problem for item in source(tmp_path, text, name, **options).items()]


def test_a_good_row_has_the_path_and_the_turns(tmp_path: Path) -> None:
    (item,) = source(tmp_path, json.dumps([GOOD])).items()
    assert item.uri == str(tmp_path / "duck.jpg")
    assert item.problem is None
    assert item.turns == (
        Turn("user", (ImageSlot(0), Text("What is it?"))),
        Turn("assistant", (Text("A duck."),)),
    )


def test_a_placeholder_inside_a_sentence_leaves_its_words_apart(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": " Is <image> a duck?\n"}, {"from": "gpt", "value": "Yes."}]
    (item,) = source(tmp_path, json.dumps([{**GOOD, "conversations": talk}])).items()
    assert item.turns[0].content == (Text("Is "), ImageSlot(0), Text(" a duck?"))


def test_a_system_turn_may_come_first(tmp_path: Path) -> None:
    row = {**GOOD, "conversations": [{"from": "system", "value": "Be brief."}, *TALK]}
    (item,) = source(tmp_path, json.dumps([row])).items()
    assert [turn.role for turn in item.turns] == ["system", "user", "assistant"]


ONE, TWO = TALK
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "a number as row": (7, "row_not_an_object"),
    "no id": ({"image": "duck.jpg", "conversations": TALK}, "no_id"),
    "nan id": ({**GOOD, "id": float("nan")}, "bad_id"),
    "true as id": ({**GOOD, "id": True}, "bad_id"),
    "empty id": ({**GOOD, "id": ""}, "bad_id"),
    "no conversations": ({"id": "1", "image": "duck.jpg"}, "conversations_not_a_list"),
    "text as conversations": ({**GOOD, "conversations": "hello"}, "conversations_not_a_list"),
    "empty conversation": ({**GOOD, "conversations": []}, "empty_conversation"),
    "only a system turn": (
        {**GOOD, "conversations": [{"from": "system", "value": "x"}]},
        "empty_conversation",
    ),
    "text as turn": ({**GOOD, "conversations": ["hello", "you"]}, "turn_not_an_object"),
    "unknown role": ({**GOOD, "conversations": [ONE, {**TWO, "from": "robot"}]}, "unknown_role"),
    "list as role": ({**GOOD, "conversations": [ONE, {**TWO, "from": ["gpt"]}]}, "unknown_role"),
    "number as value": ({**GOOD, "conversations": [ONE, {**TWO, "value": 5}]}, "value_not_a_string"),
    "null as value": ({**GOOD, "conversations": [ONE, {**TWO, "value": None}]}, "value_not_a_string"),
    "empty answer": ({**GOOD, "conversations": [ONE, {**TWO, "value": " \n"}]}, "empty_turn"),
    "only a placeholder": ({**GOOD, "conversations": [{**ONE, "value": "<image>"}, TWO]}, "empty_turn"),
    "answer first": ({**GOOD, "conversations": [TWO, ONE]}, "roles_do_not_alternate"),
    "question last": (
        {**GOOD, "conversations": [*TALK, {"from": "human", "value": "?"}]},
        "roles_do_not_alternate",
    ),
    "late system turn": (
        {**GOOD, "conversations": [*TALK, {"from": "system", "value": "x"}]},
        "roles_do_not_alternate",
    ),
    "no placeholder": ({**GOOD, "conversations": [{**ONE, "value": "What?"}, TWO]}, "placeholder_mismatch"),
    "two placeholders": (
        {**GOOD, "conversations": [{**ONE, "value": "<image><image> What?"}, TWO]},
        "placeholder_mismatch",
    ),
    "placeholder in the answer": (
        {**GOOD, "conversations": [{**ONE, "value": "What?"}, {**TWO, "value": "<image> this"}]},
        "placeholder_mismatch",
    ),
    "no image": ({"id": "1", "conversations": TALK}, "no_image"),
    "null image": ({**GOOD, "image": None}, "no_image"),
    "number as image": ({**GOOD, "image": 5}, "image_not_a_string"),
    "two images": ({**GOOD, "image": ["duck.jpg", "duck.jpg"]}, "several_images"),
    "url": ({**GOOD, "image": "http://example.org/duck.jpg"}, "remote_image"),
    "missing": ({**GOOD, "image": "goose.jpg"}, "missing_image"),
    "a file as folder": ({**GOOD, "image": "duck.jpg/x.jpg"}, "missing_image"),
    "absolute path": ({**GOOD, "image": "/etc/hostname"}, "image_leaves_root"),
    "dots": ({**GOOD, "image": "../duck.jpg"}, "image_leaves_root"),
    "dots that come back": ({**GOOD, "image": "a/../../x/duck.jpg"}, "image_leaves_root"),
    "null character": ({**GOOD, "image": "duck\0.jpg"}, "bad_image_path"),
    "very long path": ({**GOOD, "image": "x" * 5000}, "bad_image_path"),
    "the root itself": ({**GOOD, "image": "."}, "is_a_folder"),
    "lone surrogate": ({**GOOD, "id": "\ud800"}, "invalid_unicode"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_has_its_own_reason_and_does_not_touch_the_next(tmp_path: Path, name: str) -> None:
    row, reason = BAD_ROWS[name]
    assert problems(tmp_path, json.dumps([row, {**GOOD, "id": "2"}])) == [reason, None]


def test_the_second_row_with_an_id_is_a_duplicate_of_the_first(tmp_path: Path) -> None:
    items = list(source(tmp_path, json.dumps([GOOD, {**GOOD, "id": "2"}, GOOD])).items())
    assert [item.problem for item in items] == [None, None, "duplicate_id"]
    assert items[2].detail == "row 0 has the same id"
    assert len({item.id for item in items}) == 3


def test_a_link_out_of_the_image_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    rows = [{**GOOD, "image": "link.jpg"}, {**GOOD, "id": "2", "image": "loop.jpg"}]
    assert problems(root, json.dumps(rows)) == ["symlink_leaves_root", "symlink_loop"]


def test_without_conversations_only_the_image_counts(tmp_path: Path) -> None:
    (item,) = source(
        tmp_path, json.dumps([{**GOOD, "conversations": "broken"}]), use_conversations=False
    ).items()
    assert item.problem is None
    assert item.turns == ()


GOOD_LINE = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'[{GOOD_LINE}, {{"id": ', [None, "invalid_json"]),
        (f"[{GOOD_LINE}", [None, "invalid_json"]),
        (f"[{GOOD_LINE}] trailing", [None, "invalid_json"]),
        (f"[{GOOD_LINE},]", [None, "invalid_json"]),
        ("[]", ["empty_file"]),
        ("", ["empty_file"]),
        (" \n", ["empty_file"]),
        ('{"rows": []', ["not_a_list"]),
        ("null", ["not_a_list"]),
        ("<html>", ["not_a_list"]),
        ("[" * 100_000, ["invalid_json"]),
        ("\ufeff" + f"[{GOOD_LINE}]", [None]),
    ],
)
def test_what_can_be_read_of_a_broken_list_is_read(
    tmp_path: Path, text: str, expected: list[str | None]
) -> None:
    assert problems(tmp_path, text) == expected


def test_rows_per_line_are_read_one_by_one_and_a_broken_line_costs_one_row(tmp_path: Path) -> None:
    lines = [GOOD_LINE, "{broken", "", json.dumps({**GOOD, "id": "2"})]
    assert problems(tmp_path, "\n".join(lines), "rows.jsonl") == [None, "invalid_json", None]
    assert problems(tmp_path, "\n".join([lines[0], lines[3]]), "rows.json") == [None, None]


def test_bytes_that_are_no_utf8_spoil_only_their_row(tmp_path: Path) -> None:
    bad = GOOD_LINE.encode().replace(b"A duck", b"A \xff\xfe")
    assert problems(tmp_path, bad + b"\n" + json.dumps({**GOOD, "id": "2"}).encode(), "rows.jsonl") == [
        "invalid_unicode",
        None,
    ]


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nothing\.json"):
        list(LlavaSource(name="l", path=str(tmp_path / "nothing.json"), image_root=str(tmp_path)).items())
