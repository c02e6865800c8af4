from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_data import png, read_in, reasons

from infinity_mm.errors import UserError
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.parquet import ParquetSource

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, row_group_rows: int = 3, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_rows)


def structs(*images: bytes | None) -> pa.Array:
    return pa.array([{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)], STRUCT)


def test_rows_of_a_data_set_with_an_image_column_become_samples(tmp_path: Path) -> None:
    write(
        tmp_path / "d/data/train-0.parquet",
        image=structs(png(1), png(2), b"no image", None),
        label=[1, 2, 3, 4],
    )
    write(tmp_path / "d/data/train-1.parquet", image=[png(3)])
    run = read_in(tmp_path, SourceConfig(kind="parquet", path=str(tmp_path / "d"), licence="CC0-1.0"))
    data = {run.images.read(sample.images[0]) for sample in run.samples("unique")}
    assert data == {png(1), png(2), png(3)}
    assert reasons(run) == {
        "data/train-0.parquet/000000002": "not_an_image",
        "data/train-0.parquet/000000003": "image_not_embedded",
    }


def test_captions_conversations_ids_and_licences_come_from_named_columns(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    write(
        tmp_path / "d" / "0.parquet",
        picture=[png(1), png(2), png(3), png(4)],
        uid=["x/1", "y", "y", None],
        caption=["A duck.", "", "c", "d"],
        chat=[messages] * 4,
        rights=["CC-BY-4.0", None, "", ""],
    )
    columns: Any = {
        "image_column": "picture",
        "id_column": "uid",
        "licence_column": "rights",
        "licence": "own",
    }
    config = SourceConfig(kind="parquet", path=str(tmp_path / "d"), conversation_column="chat", **columns)
    run = read_in(tmp_path / "chat", config)
    assert reasons(run) == {"0.parquet/000000002": "duplicate_id", "0.parquet/000000003": "no_id"}
    assert sorted(sample.images[0].licence for sample in run.samples("unique")) == ["CC-BY-4.0", "own"]
    for sample in run.samples("unique"):
        assert sample.turns[0] == Turn("user", (ImageSlot(0), Text("Where?")))
    run = read_in(
        tmp_path / "caption",
        SourceConfig(kind="parquet", path=str(tmp_path / "d"), caption_column="caption", **columns),
    )
    assert reasons(run) == {**reasons(run), "y": "empty_turn"}
    assert [sample.turns[-1].text for sample in run.samples("unique")] == ["A duck."]


def test_a_row_of_several_images_is_one_sample_if_so_many_are_allowed(tmp_path: Path) -> None:
    images = pa.array(
        [[{"bytes": png(n), "path": None} for n in range(size)] for size in (1, 3, 4)], pa.list_(STRUCT)
    )
    write(tmp_path / "0.parquet", images=images)
    config = SourceConfig(kind="parquet", path=str(tmp_path), max_images=3)
    run = read_in(tmp_path, config)
    assert sorted(len(sample.images) for sample in run.samples("unique")) == [1, 3]
    assert set(reasons(run).values()) == {"too_many_images"}
    assert len({sample.id for sample in run.samples("unique")}) == 2
    assert config.images_per_sample == 3


def test_rows_are_read_in_any_order_over_files_and_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", row_group_rows=10, image=[png(n) for n in range(25)])
    write(tmp_path / "b.parquet", row_group_rows=10, image=[png(n) for n in range(25, 30)])
    source = ParquetSource(name="p", path=str(tmp_path))
    items = list(source.items())
    for number in (0, 1, 24, 9, 10, 29, 3, 8, 7, 25, 16):
        (picture,) = source.read(items[number]).pictures
        assert picture.data == png(number)


def test_listing_a_million_rows_touches_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the footer: the file's pages are overwritten, and the listing is the same."""
    write(tmp_path / "0.parquet", row_group_rows=1 << 20, image=pa.nulls(1_000_000, pa.binary()))
    data = bytearray((tmp_path / "0.parquet").read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = b"\xff" * (len(data) - footer - 4)
    (tmp_path / "0.parquet").write_bytes(bytes(data))
    source = ParquetSource(name="p", path=str(tmp_path))
    last = None
    for number, item in enumerate(source.items()):
        last = (number, item)
    assert last is not None
    assert (last[0], last[1].key) == (999_999, "0.parquet/000999999")


def test_a_file_that_is_no_parquet_is_an_item_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 and no more")
    write(tmp_path / "1.parquet", image=[png(1)])
    run = read_in(tmp_path, SourceConfig(kind="parquet", path=str(tmp_path)))
    assert reasons(run) == {"0.parquet/": "not_parquet"}
    assert len(list(run.samples("unique"))) == 1


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", photo=[png(1)])
    with pytest.raises(UserError, match="there is no column `image`") as error:
        list(ParquetSource(name="p", path=str(tmp_path)).items())
    assert "photo" in str(error.value)


def test_a_column_of_links_is_refused_row_by_row(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", image=["https://example.org/a.jpg"])
    run = read_in(tmp_path, SourceConfig(kind="parquet", path=str(tmp_path)))
    assert list(reasons(run).values()) == ["image_not_bytes"]


def test_parquet_behind_a_url_is_read(tmp_path: Path) -> None:
    import fsspec

    write(tmp_path / "0.parquet", image=[png(1)])
    memory = fsspec.filesystem("memory")
    memory.pipe("/sets/d/0.parquet", (tmp_path / "0.parquet").read_bytes())
    try:
        source = ParquetSource(name="p", path="memory://sets/d")
        (item,) = source.items()
        assert [picture.data for picture in source.read(item).pictures] == [png(1)]
    finally:
        memory.rm("/sets", recursive=True)
