from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from source_data import entry, png, read_in, reasons, talk, write_tar

from infinity_mm.errors import UserError
from infinity_mm.record import ImageSlot, Tag, Text, Turn
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.tars import InfinityMMSource, WebDatasetSource, released_tags


def shards(tmp_path: Path) -> SourceConfig:
    """All four stages' layouts, with what is text only."""
    tags = {"ram++_tags": ["dog", "grass"], "ram++_tags_score": [6.5, 1.4], "license": "CC-BY-4.0"}
    write_tar(tmp_path / "mm/stage1/emu/0.tar", [*entry("a", png(1), **tags), *entry("b", b"")])
    write_tar(tmp_path / "mm/stage2/general/x/0.tar", entry("a", png(2)))
    write_tar(tmp_path / "mm/stage3/y/0.tar", entry("a", png(3)))
    write_tar(tmp_path / "mm/stage4/synthetic/z/0.tar", entry("a", png(4)))
    return SourceConfig(kind="infinity_mm", path=str(tmp_path / "mm"), licence="CC-BY-SA-4.0")


def test_the_layouts_of_all_four_stages_are_read_and_text_only_samples_have_a_fate(tmp_path: Path) -> None:
    run = read_in(tmp_path, shards(tmp_path))
    samples = {sample.images[0].width: sample for sample in run.samples("unique")}
    assert len(list(run.samples("unique"))) == 4
    assert reasons(run) == {"stage1/emu/0.tar/b": "text_only"}
    assert samples.keys() == {40}


def test_conversation_tags_origin_and_licence_come_with_the_image(tmp_path: Path) -> None:
    run = read_in(tmp_path, shards(tmp_path))
    sample = next(sample for sample in run.samples("unique") if sample.tags)
    assert sample.turns == (
        Turn("user", (ImageSlot(0), Text("What is it?"))),
        Turn("assistant", (Text("Yes."),)),
    )
    assert sample.tags == (Tag(name="dog", score=0.9985), Tag(name="grass", score=0.8022))
    assert (sample.images[0].source, sample.images[0].licence) == ("infinity_mm/LVIS", "CC-BY-4.0")
    others = {s.images[0].licence for s in run.samples("unique") if not s.tags}
    assert others == {"CC-BY-SA-4.0"}


def test_images_are_read_again_where_they_lie_in_the_tar_and_nothing_is_copied(tmp_path: Path) -> None:
    run = read_in(tmp_path, shards(tmp_path))
    assert not (tmp_path / "run" / "images").exists()
    data = {run.images.read(sample.images[0]) for sample in run.samples("unique")}
    assert data == {png(1), png(2), png(3), png(4)}
    assert {s.images[0].uri.partition("#")[2][:6] for s in run.samples("unique")} == {"bytes="}


def test_reading_one_sample_reads_only_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_tar(path, [member for n in range(20) for member in entry(f"{n:02d}", png(n))])
    source = InfinityMMSource(name="s", path=str(path))
    items = list(source.items())
    with tarfile.open(path) as archive:
        headers = {member.name: member for member in archive}
    wrong = bytearray(path.read_bytes())
    keep = [(headers[name].offset_data, headers[name].size) for name in ("13.json", "13.jpg")]
    for place in range(len(wrong)):
        if not any(start <= place < start + size for start, size in keep):
            wrong[place] = 0xFF
    path.write_bytes(bytes(wrong))
    (picture,) = source.read(items[13]).pictures
    assert picture.data == png(13)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.json", b"{}")], "no_jpg_member"),
        ([("a.jpg", b"x")], "no_json_member"),
        ([("a.json", b"{}"), ("a.jpg", b"x"), ("a.txt", b"x")], "unknown_member"),
        ([("a.json", b"{"), ("a.jpg", png(1))], "invalid_json"),
        ([("a.json", b"[]"), ("a.jpg", png(1))], "row_not_an_object"),
        ([("a.json", b"\xff"), ("a.jpg", png(1))], "invalid_unicode"),
        (entry("a", png(1), conversations=talk("No place")), "placeholder_mismatch"),
        (entry("a", png(1), conversations=talk("<image>")), "empty_turn"),
        ([("../a.json", b"{}"), ("../a.jpg", b"x")], "member_leaves_root"),
    ],
)  # fmt: skip
def test_a_faulty_sample_has_its_own_reason_and_does_not_touch_the_next(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    write_tar(tmp_path / "0.tar", [*members, *entry("z", png(9))])
    run = read_in(tmp_path, SourceConfig(kind="infinity_mm", path=str(tmp_path / "0.tar")))
    assert set(reasons(run).values()) == {reason}
    assert len(list(run.samples("unique"))) == 1


def test_a_name_that_a_tar_uses_twice_is_two_items(tmp_path: Path) -> None:
    members = [*entry("a", png(1)), *entry("b", png(2)), *entry("a", png(3))]
    write_tar(tmp_path / "0.tar", members)
    keys = [item.key for item in InfinityMMSource(name="s", path=str(tmp_path)).items()]
    assert keys == ["0.tar/a", "0.tar/b", "0.tar/a#2"]


def test_a_tar_that_breaks_off_gives_what_it_has_and_an_item_for_the_break(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*entry("a", png(1)), *entry("b", png(2))])
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:3000])
    run = read_in(tmp_path, SourceConfig(kind="infinity_mm", path=str(tmp_path)))
    assert len(list(run.samples("unique"))) == 1
    assert "broken_archive" in reasons(run).values()


def test_without_conversations_only_image_and_tags_are_taken(tmp_path: Path) -> None:
    broken = {"conversations": "none", "ram++_tags": ["dog"], "ram++_tags_score": [2.0]}
    write_tar(tmp_path / "0.tar", entry("a", png(1), **broken))
    source = InfinityMMSource(name="s", path=str(tmp_path), use_conversations=False)
    content = source.read(next(source.items()))
    assert content.turns == ()
    assert content.tags == (Tag(name="dog", score=0.8808),)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"ram++_tags": ["dog"]},
        {"ram++_tags": "dog | cat", "ram++_tags_score": [1.0, 2.0]},
        {"ram++_tags": ["dog"], "ram++_tags_score": [1.0, 2.0]},
        {"ram++_tags": ["dog"], "ram++_tags_score": ["high"]},
        {"ram++_tags": [""], "ram++_tags_score": [1.0]},
    ],
)
def test_tags_without_a_score_each_are_no_tags(record: dict[str, object]) -> None:
    assert released_tags(record) is None


def test_a_webdataset_gives_images_of_any_suffix_with_captions_and_conversations(tmp_path: Path) -> None:
    members = [
        ("1.webp", png(1)), ("1.txt", b"A duck.\n"),
        ("2.png", png(2)), ("2.json", json.dumps({"caption": "A cat.", "license": "CC0-1.0"}).encode()),
        ("3.jpg", png(3)), ("3.json", json.dumps({"conversations": talk("<image>\nWhere?")}).encode()),
        ("4.jpg", png(4)), ("4.left.jpg", png(5)),
        ("5.txt", b"no image"),
        ("6.jpg", png(6)),
        ("7.jpg", png(7)), ("7.txt", b"\xff\xfe"),
    ]  # fmt: skip
    write_tar(tmp_path / "a" / "0.tar", members)
    run = read_in(tmp_path, SourceConfig(kind="webdataset", path=str(tmp_path / "a" / "*.tar")))
    said = {s.images[0].sha256: (s.turns[-1].text if s.turns else None) for s in run.samples("unique")}
    assert sorted(text or "" for text in said.values()) == ["", "A cat.", "A duck.", "Yes."]
    assert reasons(run) == {
        "0.tar/4": "several_images",
        "0.tar/5": "no_image_member",
        "0.tar/7": "invalid_unicode",
    }
    assert {s.images[0].licence for s in run.samples("unique")} == {"unknown", "CC0-1.0"}


def test_tars_behind_a_url_are_read_in_ranges(tmp_path: Path) -> None:
    import fsspec

    write_tar(tmp_path / "0.tar", entry("a", png(1)))
    memory = fsspec.filesystem("memory")
    memory.pipe("/tars/part/0.tar", (tmp_path / "0.tar").read_bytes())
    try:
        source = WebDatasetSource(name="s", path="memory://tars")
        (item,) = source.items()
        (picture,) = source.read(item).pictures
        assert (item.key, picture.data) == ("part/0.tar/a", png(1))
        assert picture.uri is not None
        assert picture.uri.startswith("memory://tars/part/0.tar#bytes=")
    finally:
        memory.rm("/tars", recursive=True)


def test_a_path_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no `\*.tar` file"):
        list(InfinityMMSource(name="s", path=str(tmp_path)).items())


def test_what_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "out.partial" / "0.tar", entry("a", png(1)))
    write_tar(tmp_path / "1.tar", entry("b", png(2)))
    assert [item.key for item in InfinityMMSource(name="s", path=str(tmp_path)).items()] == ["1.tar/b"]
