from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from format_data import png, talk
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.errors import UserError
from infinity_mm.formats.base import Rejected, Row
from infinity_mm.formats.convert import convert, export_data, import_data
from infinity_mm.record import ConservationError, ImageSlot, Text, Turn

ROW = Row(number=0, id="a", pictures=(), turns=(Turn("user", (Text("Q"),)), Turn("assistant", (Text("A"),))))


class Given:
    """A reader of ready rows; an exception among them is raised in its place."""

    def __init__(self, *rows: Row | Rejected | Exception) -> None:
        self.not_carried: Counter[str] = Counter()
        self._rows = rows

    def read(self) -> Iterator[Row | Rejected]:
        for row in self._rows:
            if isinstance(row, Exception):
                raise row
            yield row


@pytest.mark.parametrize("to", ["messages", "llava", "infinity-mm", "swift", "llamafactory"])
def test_the_folder_appears_whole_or_not_at_all(tmp_path: Path, to: str) -> None:
    with pytest.raises(OSError, match="disk full"):
        convert(Given(ROW, OSError("disk full")), to, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    assert convert(Given(ROW), to, tmp_path / "out", {})["taken"] == 1
    assert not (tmp_path / "out.partial").exists()


def test_a_row_that_is_skipped_or_comes_twice_stops_the_conversion(tmp_path: Path) -> None:
    with pytest.raises(ConservationError, match="row 1 was expected, row 0 came"):
        convert(Given(ROW, ROW), "messages", tmp_path / "out", {})


def test_rows_that_are_lost_while_writing_stop_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infinity_mm.formats.messages.MessagesWriter._flush", lambda self: None)
    monkeypatch.setattr("infinity_mm.formats.messages.MessagesWriter._end_file", lambda self: None)
    with pytest.raises(ConservationError, match="0 rows are in the files"):
        convert(Given(ROW), "messages", tmp_path / "out", {})


def test_an_existing_folder_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        convert(Given(ROW), "messages", tmp_path, {})
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_a_text_that_looks_like_a_place_is_not_written_where_it_would_be_one(tmp_path: Path) -> None:
    turns = (Turn("user", (Text("What is `<image>`?"),)), Turn("assistant", (Text("A tag."),)))
    row = Row(number=0, id="a", pictures=(), turns=turns)
    for to in ("llava", "infinity-mm", "swift", "llamafactory"):
        assert convert(Given(row), to, tmp_path / to, {})["reasons"] == {"placeholder_in_text": 1}


def test_wrong_names_and_paths_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use one of llava, messages, infinity-mm, coco"):
        import_data("lava", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"no `\*.tar` file below"):
        import_data("infinity-mm", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="there is no file"):
        import_data("llava", tmp_path / "none.json", tmp_path / "out")
    with pytest.raises(UserError, match="no Parquet file below"):
        export_data(tmp_path, "llava", tmp_path / "out")
    with pytest.raises(UserError, match="use one of messages, llava"):
        convert_to_nothing(tmp_path)


def convert_to_nothing(folder: Path) -> None:
    convert(Given(ROW), "messages", folder / "in", {})
    export_data(folder / "in", "coco", folder / "out")


def test_the_commands_print_one_json_object_and_exit_with_1_when_nothing_was_taken(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [
        {"id": "1", "image": "a.png", "conversations": talk("<image>?")},
        {"id": "2", "conversations": []},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    out = str(tmp_path / "in")
    result = CliRunner().invoke(app, ["import", "llava", str(tmp_path / "rows.json"), "--out", out, "--json"])
    summary: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code, summary["taken"], summary["reasons"]) == (0, 1, {"empty_conversation": 1})
    exported = CliRunner().invoke(app, ["export", out, "--to", "swift", "--out", str(tmp_path / "swift")])
    assert "1 rows in messages: 1 written as swift" in exported.stdout
    (tmp_path / "rows.json").write_text("[]")
    nothing = ["import", "llava", str(tmp_path / "rows.json"), "--out", str(tmp_path / "none")]
    assert CliRunner().invoke(app, nothing).exit_code == 1


def test_pictures_without_a_name_get_one_by_content(tmp_path: Path) -> None:
    from infinity_mm.formats.base import Picture

    turns = (Turn("user", (ImageSlot(0),)), Turn("assistant", (Text("A"),)))
    row = Row(number=0, id=None, pictures=(Picture(None, png(5)),), turns=turns)
    convert(Given(row), "messages", tmp_path / "in", {})
    (found,) = pq.read_table(tmp_path / "in" / "data").to_pylist()
    export_data(tmp_path / "in", "swift", tmp_path / "out")
    assert [f.name for f in (tmp_path / "out" / "images").iterdir()] == [found["images"][0]["path"]]
