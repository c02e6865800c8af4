"""Turns that were made come back onto published shards, and whoever read those before reads these."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from format_data import png, read_jsonl, read_tar, talk, write_tar
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.data.readers.tars import TarSource
from infinity_mm.errors import UserError
from infinity_mm.formats.extend import extend_shards
from infinity_mm.synth.publish import parquet_bytes

UNPACKED = {"id", "source", "conversations", "image", "ram++_tags", "ram++_tags_score", "phash"}
"""The fields that the data set's official unpacker handles."""


def entry(id_: str, image: bytes, question: str = "What is it?") -> list[tuple[str, bytes]]:
    body = {
        "id": id_, "source": "LVIS", "conversations": talk(f"<image>\n{question}" if image else question),
        "image": f"lvis/{id_}.png", "ram++_tags": ["dog"], "ram++_tags_score": [6.5], "phash": 13832185291274213111,
    }  # fmt: skip
    return [(f"./part/{id_}.json", json.dumps(body).encode()), (f"./part/{id_}.jpg", image)]


def row(
    id_: str, image: bytes, pairs: list[tuple[str, str]], *, brought: list[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """A published row: what came with the image, then what was made."""
    told = [*(brought or []), *pairs]
    messages = []
    for number, (question, answer) in enumerate(told):
        slot = [] if number else [{"type": "image", "text": None}]
        messages.append({"role": "user", "content": [*slot, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    about = {"images": [{"sha256": hashlib.sha256(image).hexdigest()}], "pairs": [{"id": f"{id_}.q0"}]}
    about |= {"source_turns": 2 * len(brought)} if brought else {}
    return {
        "id": id_, "images": [{"bytes": image, "path": "x.png"}], "messages": messages, "source": "s",
        "licence": "l", "provenance": json.dumps(about),
    }  # fmt: skip


def extend(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    (tmp_path / "made.parquet").write_bytes(parquet_bytes(rows))
    return extend_shards([tmp_path / "made.parquet"], tmp_path / "in", tmp_path / "out")


def webdataset(path: Path) -> Iterator[dict[str, Any]]:
    """How the data set is read by those who know nothing of us: adjacent members with one key are a sample."""
    sample: dict[str, Any] = {}
    with tarfile.open(path, "r|") as stream:
        for member in stream:
            if not member.isfile():
                continue
            key, _, suffix = member.name.rpartition("/")[2].partition(".")
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            file = stream.extractfile(member)
            assert file is not None
            assert suffix not in sample
            sample |= {"__key__": key, suffix: file.read()}
    yield sample


DUCK, CAT = png(1), png(2)
BROUGHT = [("What is it?", "Yes.")]
MADE = [
    row("a.c0", DUCK, [("Which color?", "Yellow."), ("How big?", "Small.")], brought=BROUGHT),
    row("a.c1", DUCK, [("Which color?", "It is yellow, like butter.")]),
    row("b.c0", CAT, [("Where?", "On a mat.")]),
]


def shards(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "in/stage4/a/0.tar", [*entry("d", DUCK), *entry("t", b"", "2 + 2?"), *entry("d2", DUCK)]
    )
    write_tar(tmp_path / "in/stage4/b/0.tar", [*entry("c", CAT), *entry("n", png(3))])


def test_records_keep_their_fields_turns_and_images_and_gain_what_was_made(tmp_path: Path) -> None:
    shards(tmp_path)
    counts = extend(tmp_path, MADE)
    samples = list(webdataset(tmp_path / "out/stage4/a/0.tar"))
    assert [sample["__key__"] for sample in samples] == ["d", "d_infinity_mm_c1", "t", "d2"]
    first, further = (json.loads(sample["json"]) for sample in samples[:2])
    assert first["conversations"] == [
        *talk("<image>\nWhat is it?"), *talk("Which color?", "Yellow."), *talk("How big?", "Small."),
    ]  # fmt: skip
    assert further["conversations"] == talk("<image>\nWhich color?", "It is yellow, like butter.")
    assert (first["id"], further["id"]) == ("d", "d.c1")
    assert first["phash"] == further["phash"] == 13832185291274213111
    assert first["provenance"]["made_turns"] == 4
    assert samples[0]["jpg"] == samples[1]["jpg"] == DUCK
    assert {key: counts[key] for key in ("rows", "taken", "records", "extended", "added", "turns")} == {
        "rows": 3, "taken": 3, "records": 5, "extended": 2, "added": 1, "turns": 8,
    }  # fmt: skip


def test_boxes_and_points_are_written_in_thousandths_and_no_marker_is_left(tmp_path: Path) -> None:
    shards(tmp_path)
    box, far = "<|region 0 0.120000 0.080000 0.340000 0.160000|>", "<|region 1 0.1 0.2|>"
    rows = [row("b.c0", CAT, [(f"What is in {box}?", "A mat.")]), row("a.c0", DUCK, [("Where?", far)])]
    counts = extend(tmp_path, rows)
    first, *_ = webdataset(tmp_path / "out/stage4/b/0.tar")
    made = json.loads(first["json"])["conversations"][2:]
    assert made == talk("What is in [120, 80, 340, 160]?", "A mat.")
    assert counts["reasons"] == {"region_of_no_image": 1}


def test_everything_else_is_byte_by_byte_as_it_was(tmp_path: Path) -> None:
    shards(tmp_path)
    extend(tmp_path, MADE)
    for name in ("a", "b"):
        before = read_tar(tmp_path / f"in/stage4/{name}/0.tar")
        after = read_tar(tmp_path / f"out/stage4/{name}/0.tar")
        assert [member for member in after if "_infinity_mm_" not in member] == list(before)
        changed = {member for member in before if after[member] != before[member]}
        assert changed == ({"./part/d.json"} if name == "a" else {"./part/c.json"})


def test_the_expectations_of_those_who_read_the_original_hold(tmp_path: Path) -> None:
    shards(tmp_path)
    extend(tmp_path, MADE)
    for path in sorted((tmp_path / "out").rglob("*.tar")):
        for sample in webdataset(path):
            assert sample.keys() == {"__key__", "json", "jpg"}
            record = json.loads(sample["json"])
            assert record.keys() >= UNPACKED
            turns = record["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            places = sum(turn["value"].count("<image>") for turn in turns)
            assert places == turns[0]["value"].count("<image>") == bool(sample["jpg"])
    source = TarSource(path=str(tmp_path / "out"))
    assert [len(source[number].messages) for number in range(len(source))] == [6, 2, 2, 2, 4, 2]
    assert [len(source[number].images) for number in range(len(source))] == [1, 1, 0, 1, 1, 1]


def test_a_conversation_that_no_record_takes_is_listed_with_the_reason(tmp_path: Path) -> None:
    shards(tmp_path)
    counts = extend(
        tmp_path,
        [
            row("a.c0", DUCK, [("what is it ?", "A duck.")]),
            row("b.c0", CAT, [("Is <image> a tag?", "Yes.")]),
            row("c.c0", png(9), [("Where?", "Here.")]),
            row("d.c0", png(3), [], brought=BROUGHT),
        ],
    )
    assert counts["taken"] == 0
    assert read_jsonl(tmp_path / "out" / "rejected.jsonl") == [
        {"id": "a.c0", "reason": "asked_in_source"},
        {"id": "b.c0", "reason": "placeholder_in_text"},
        {"id": "c.c0", "reason": "image_not_in_shards"},
        {"id": "d.c0", "reason": "nothing_made"},
    ]
    assert read_tar(tmp_path / "out/stage4/a/0.tar") == read_tar(tmp_path / "in/stage4/a/0.tar")


def test_a_tar_that_is_not_whole_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "in/stage4/b/0.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"stage4/b/0\.tar cannot be read to its end"):
        extend(tmp_path, MADE)
    assert not (tmp_path / "out").exists()


def test_faulty_records_folders_and_links_are_copied_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/0.tar", "w") as archive:
        folder = tarfile.TarInfo("part/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../d.jpg"
        archive.addfile(link)
    write_tar(tmp_path / "in/1.tar", [("x.json", b"{broken"), ("x.jpg", DUCK), ("y.jpg", CAT)])
    counts = extend(tmp_path, MADE[2:])
    assert counts["reasons"] == {"image_not_in_shards": 1}
    with tarfile.open(tmp_path / "out/0.tar") as archive:
        assert [(m.name, m.type, m.linkname) for m in archive] == [
            ("part", tarfile.DIRTYPE, ""),
            ("l.jpg", tarfile.SYMTYPE, "../d.jpg"),
        ]
    assert read_tar(tmp_path / "out/1.tar") == read_tar(tmp_path / "in/1.tar")


def test_the_command_extends_shards_and_no_other_format(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "0.parquet").write_bytes(parquet_bytes(MADE))
    command = [
        "export",
        str(tmp_path / "made"),
        "--onto",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, [*command, "--to", "infinity-mm", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["extended"] == 2
    wrong = CliRunner().invoke(app, [*command, "--to", "llava"])
    assert isinstance(wrong.exception, UserError)
    assert "--onto extends Infinity-MM's own tars" in str(wrong.exception)
