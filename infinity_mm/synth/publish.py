"""Conversations as a Parquet file that other libraries open without knowing this one.

    Sample + image bytes --row--> {id, images, messages, ..., pairs} --parquet_bytes--> the same bytes in every run

`datasets.load_dataset("parquet", data_files=...)` gives decoded images, because the file says so in its own
metadata; the `messages` are what chat templates and trainers take. `pairs` has a line for every exchange with all
that was measured of it, so that anybody can draw another line through the data.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infinity_mm.data.regions import text_of
from infinity_mm.engines.base import ImageReader
from infinity_mm.record import ImageRef, ImageSlot, Part, Sample, canonical_json
from infinity_mm.synth.ids import num_source_turns

ROW_GROUP_ROWS = 16
"""Small groups: viewers and shuffling readers load whole groups, and rows hold images."""
_TEXT = {"dtype": "string", "_type": "Value"}


def _list(feature: object) -> dict[str, object]:
    return {"feature": feature, "_type": "List"}


FEATURES: dict[str, object] = {
    "id": _TEXT,
    "images": _list({"_type": "Image"}),
    "messages": _list({"role": _TEXT, "content": _list({"type": _TEXT, "text": _TEXT})}),
    "source": _TEXT,
    "licence": _TEXT,
    "provenance": _TEXT,
}
"""Columns in the words of the datasets library; data that was made elsewhere has these."""
_NUMBER = {"dtype": "float64", "_type": "Value"}
LABELS = ("loss", "blind", "critic", "repeat")
"""Labels that have a column; null where nobody measured it."""
_PAIR_FEATURES = {
    **dict.fromkeys(("id", "type", "style"), _TEXT),
    **dict.fromkeys(("score", *LABELS), _NUMBER),
}
_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.list_(_PART))])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("messages", pa.list_(_MESSAGE)),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("provenance", pa.string()),
    ],
    metadata={"huggingface": canonical_json({"info": {"features": FEATURES}})},
)
_PAIR = pa.struct(
    [(name, pa.string() if feature is _TEXT else pa.float64()) for name, feature in _PAIR_FEATURES.items()]
)
WITH_PAIRS = pa.schema(
    [*SCHEMA, ("pairs", pa.list_(_PAIR))],
    metadata={
        "huggingface": canonical_json({"info": {"features": {**FEATURES, "pairs": _list(_PAIR_FEATURES)}}})
    },
)
"""The layout of what a run publishes."""
_LEAVES = (
    "id",
    "images.list.element.bytes",
    "images.list.element.path",
    "messages.list.element.role",
    "messages.list.element.content.list.element.type",
    "messages.list.element.content.list.element.text",
    "source",
    "licence",
    "provenance",
)
"""Columns as Parquet names them."""
_PAIR_LEAVES = tuple(f"pairs.list.element.{name}" for name in _PAIR_FEATURES)
_ENDINGS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


def row(sample: Sample, pairs: Sequence[Sample], images: ImageReader) -> dict[str, Any]:
    """One row. `pairs` are the question-answer pairs in the conversation, in order; they are its provenance."""
    read = [(image, images.read(image)) for image in sample.images]
    return {
        "id": sample.id,
        "images": [{"bytes": data, "path": file_name(image, data)} for image, data in read],
        "messages": [{"role": turn.role, "content": _content(turn.content)} for turn in sample.turns],
        "source": _joined(image.source for image in sample.images),
        "licence": _joined(image.licence for image in sample.images),
        "provenance": canonical_json(provenance(sample, pairs)),
        "pairs": [_pair(pair) for pair in pairs],
    }


def _pair(pair: Sample) -> dict[str, Any]:
    return {
        "id": pair.id,
        "type": pair.instruction_type,
        "style": pair.style,
        "score": None if pair.score is None else pair.score.value,
        **{name: pair.label(name) for name in LABELS},
    }


def provenance(sample: Sample, pairs: Sequence[Sample]) -> dict[str, Any]:
    """Where images and turns come from; nothing in it depends on the machine.

    `source_turns`: how many turns came with the image; they stand first.
    """
    came_with = num_source_turns(sample)
    return ({"source_turns": came_with} if came_with else {}) | {
        "images": [
            {"sha256": i.sha256, "source": i.source, "licence": i.licence, "page": i.page}
            for i in sample.images
        ],
        "pairs": [
            {
                "id": pair.id,
                "type": pair.instruction_type,
                "style": pair.style,
                "score": None if pair.score is None else asdict(pair.score),
                "labels": {label.name: label.value for label in pair.labels},
                "rewritten": bool(pair.previous),
                "calls": [asdict(call) for call in pair.calls],
            }
            for pair in pairs
        ],
    }


def parquet_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The file. Image bytes are compressed already; the same rows give the same bytes with the same pyarrow."""
    table = pa.Table.from_pylist(list(rows), schema=WITH_PAIRS)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, **parquet_options(*_PAIR_LEAVES))
    return sink.getvalue()


def parquet_options(*more_columns: str) -> dict[str, Any]:
    """Writer settings for this layout and plain columns added to it; image bytes are compressed already."""
    return {
        "version": "2.6",
        "data_page_version": "1.0",
        "compression": {
            path: "none" if path.startswith("images.") else "zstd" for path in (*_LEAVES, *more_columns)
        },
        "use_dictionary": ["source", "licence"],
        "write_statistics": ["id"],
    }


def file_name(image: ImageRef, data: bytes) -> str:
    """A name for the image where one is wanted: by content, never a path of this machine."""
    return f"{image.sha256[:16]}.{image_ending(data)}"


def image_ending(data: bytes) -> str:
    """The usual ending of a file with these first bytes, `bin` for an unknown format."""
    return next((ending for head, ending in _ENDINGS.items() if data.startswith(head)), "bin")


def _content(parts: Sequence[Part]) -> list[dict[str, str | None]]:
    """Images, and the text between them; a box or point is in it as its marker."""
    found: list[dict[str, str | None]] = []
    for is_slot, some in itertools.groupby(parts, lambda part: isinstance(part, ImageSlot)):
        if is_slot:
            found += [{"type": "image", "text": None} for _ in some]
        else:
            found.append({"type": "text", "text": text_of(tuple(some))})
    return found


def _joined(names: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(names))
