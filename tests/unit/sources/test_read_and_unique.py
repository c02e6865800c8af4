from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.read_pass import TRUTH_FILE, ReadConfig, ReadPass
from infinity_mm.sources.unique_pass import UniquePass, join_conversations
from infinity_mm.windtunnel import world
from infinity_mm.windtunnel.scene import Scene


def png(color: str, size: tuple[int, int] = (40, 50), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def read(tmp_path: Path, sources: Iterable[SourceConfig], **options: Any) -> Run:
    run = Run(str(tmp_path / "run"))
    config = ReadConfig(sources=tuple(sources), **options)
    run_passes([ReadPass(config=config), UniquePass()], run, LocalExecutor())
    return run


def folder(tmp_path: Path, files: dict[str, bytes]) -> SourceConfig:
    for name, data in files.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(data)
    return SourceConfig(kind="folder", path=str(tmp_path / "images"), licence="CC0-1.0")


def test_an_image_becomes_a_sample_named_by_its_content(tmp_path: Path) -> None:
    data = png("red")
    run = read(tmp_path, [folder(tmp_path, {"a.png": data})])
    (sample,) = run.samples("unique")
    image = sample.images[0]
    assert sample.id == hashlib.sha256(data).hexdigest()[:16]
    assert (image.width, image.height, image.source, image.licence) == (40, 50, "folder", "CC0-1.0")
    assert image.uri == str(tmp_path / "images" / "a.png")
    assert run.images.read(image) == data
    assert sample.parents == tuple(line.id for line in run.ledger("read"))


def test_the_first_of_equal_images_wins_and_the_others_are_merged_into_it(tmp_path: Path) -> None:
    same, other = png("red"), png("blue")
    files = {"b.png": same, "a.png": same, "c.png": other, "d/e.png": same}
    for images_per_unit in (1, 3, 100):
        run = read(
            tmp_path / str(images_per_unit), [folder(tmp_path, files)], images_per_unit=images_per_unit
        )
        samples = {sample.id: sample for sample in run.samples("unique")}
        winner = samples[hashlib.sha256(same).hexdigest()[:16]]
        assert len(samples) == 2
        assert winner.images[0].uri.endswith("/a.png")
        merged = [line for line in run.ledger("unique") if line.fate == "merged"]
        assert {line.into for line in merged} == {(winner.id,)}
        assert len(merged) == 2


def test_file_names_with_other_line_ends_are_one_file_each(tmp_path: Path) -> None:
    files = {"a\u2028b.png": png("red"), "c\u0085d.png": png("blue"), "e\x0bf.png": png("red")}
    run = read(tmp_path, [folder(tmp_path, files)])
    assert len(list(run.samples("unique"))) == 2


def test_sizes_out_of_bounds_are_dropped_with_a_reason_and_a_detail(tmp_path: Path) -> None:
    files = {
        "small.png": png("red", (31, 40)),
        "thin.png": png("red", (2000, 40)),
        "big.png": png("red", (200, 200)),
        "good.png": png("red"),
        "not.txt": b"text",
        "empty.png": b"",
    }
    run = read(tmp_path, [folder(tmp_path, files)], max_pixels=39_999 + 50_000, max_aspect=16.0)
    dropped = {row["key"]: (row["reason"], row["detail"]) for row in run.dropped("read")}
    assert dropped["small.png"] == ("too_small", "31x40 px, each side needs 32")
    assert dropped["thin.png"] == ("extreme_aspect", "2000x40 px, limit 16 to 1")
    assert dropped["not.txt"] == ("not_an_image", "suffix .txt")
    assert dropped["empty.png"][0] == "empty_file"
    assert len(list(run.samples("unique"))) == 2


def test_drawn_images_are_stored_and_their_truth_is_kept_out_of_the_samples(tmp_path: Path) -> None:
    run = read(tmp_path, [SourceConfig(kind="windtunnel", num_images=5, world_seed=3)], images_per_unit=2)
    samples = list(run.samples("unique"))
    truths = {}
    for unit in ("00000", "00001", "00002"):
        for line in run.read_file("read", unit, TRUTH_FILE).decode().splitlines():
            row = json.loads(line)
            truths[row["image"]] = Scene.from_json(json.dumps(row["scene"]))
    assert len(samples) == 5
    for sample in samples:
        scene = truths[sample.images[0].sha256]
        assert world.png_bytes(scene) == run.images.read(sample.images[0])
        assert scene.family not in sample.to_json()
    assert {scene.family for scene in truths.values()} == {"shapes", "chart", "table", "document"}


def test_a_changed_folder_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    config = ReadConfig(sources=(folder(tmp_path, {"a.png": png("red")}),))
    run = Run(str(tmp_path / "run"))

    def skipped() -> list[bool]:
        summary = run_passes([ReadPass(config=config), UniquePass()], run, LocalExecutor())
        return [pass_.skipped for pass_ in summary.passes]

    assert skipped() == [False, False]
    assert skipped() == [True, True]
    folder(tmp_path, {"b.png": png("blue")})
    assert skipped() == [False, False]


def talk(question: str, answer: str) -> tuple[Turn, ...]:
    return (Turn("user", (ImageSlot(0), Text(question))), Turn("assistant", (Text(answer),)))


def test_conversations_about_one_image_are_joined_once_each() -> None:
    first, second = talk("What?", "A duck."), talk("Color?", "Yellow.")
    assert join_conversations([(), first, second, first]) == (
        *first,
        Turn("user", (Text("Color?"),)),
        second[1],
    )


def test_rows_of_one_image_become_one_sample_with_all_their_turns(tmp_path: Path) -> None:
    tmp_path.joinpath("duck.png").write_bytes(png("yellow"))
    rows = [
        {
            "id": str(number),
            "image": "duck.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": "Yes."},
            ],
        }
        for number, question in enumerate(["A duck?", "Yellow?", "A duck?", "Small?"])
    ]
    tmp_path.joinpath("rows.json").write_text(json.dumps(rows))
    config = SourceConfig(kind="llava", path=str(tmp_path / "rows.json"))
    for images_per_unit in (1, 4):
        run = read(tmp_path / str(images_per_unit), [config], images_per_unit=images_per_unit)
        (sample,) = run.samples("unique")
        assert [turn.text for turn in sample.turns if turn.role == "user"] == ["A duck?", "Yellow?", "Small?"]
        assert sum(isinstance(part, ImageSlot) for turn in sample.turns for part in turn.content) == 1
