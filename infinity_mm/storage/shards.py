"""Samples to Parquet and back, rows to JSON lines and back: the same input always gives the same bytes.

samples --sort by id--> columns for people + record (canonical JSON, the exact round trip) --> Parquet bytes
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from infinity_mm.errors import explain
from infinity_mm.record import SCHEMA_VERSION, Sample, canonical_json

_VERSION_KEY = b"infinity_mm.schema_version"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Sample], Any]]] = {
    "id": (pa.string(), lambda s: s.id),
    "image_sha": (pa.list_(pa.string()), lambda s: [image.sha256 for image in s.images]),
    "instruction_type": (pa.string(), lambda s: _readable(s.instruction_type)),
    "style": (pa.string(), lambda s: _readable(s.style)),
    "question": (pa.string(), lambda s: _readable(s.question)),
    "answer": (pa.string(), lambda s: _readable(s.answer)),
    "score": (pa.float64(), lambda s: None if s.score is None else s.score.value),
    "decision": (pa.string(), lambda s: _readable(s.decision)),
    "record": (pa.string(), lambda s: escape_surrogates(s.to_json())),
}


def shard_bytes(samples: Iterable[Sample]) -> bytes:
    """Return one Parquet file; `record` is what is read back, the other columns are for people and queries."""
    rows = sorted(samples, key=lambda sample: sample.id)
    for row in rows:
        if _SURROGATE.search(row.id):
            raise explain(
                what=f"the sample id {row.id!r} is not valid Unicode text",
                where="writing a shard",
                fix="make ids from hashes or from names that are valid UTF-8",
            )
    columns = {name: pa.array([get(row) for row in rows], kind) for name, (kind, get) in _COLUMNS.items()}
    return table_bytes(columns, dictionary=["instruction_type", "style", "decision"])


def read_shard(data: bytes, *, where: str) -> list[Sample]:
    """Return the samples of a shard, in id order; `where` names the file in errors."""
    return [Sample.from_json(text) for text in read_table(data, where=where).column("record").to_pylist()]


def table_bytes(columns: Mapping[str, pa.Array], *, dictionary: list[str]) -> bytes:
    """Return Parquet bytes with the schema version inside and every writer setting fixed."""
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in columns.items()],
        metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(list(columns.values()), schema=schema),
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=cast(Any, dictionary),
        row_group_size=4096,
        data_page_size=1 << 20,
    )
    return sink.getvalue()


def read_table(data: bytes, *, where: str) -> pa.Table:
    """Read `table_bytes` back; raises `UserError` for rows of another schema version."""
    table = pq.read_table(io.BytesIO(data))
    found = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise explain(
            what=f"the rows have schema version {found}, this program reads version {SCHEMA_VERSION}",
            where=where,
            fix="read it with the version of infinity-mm that wrote it (see run.json), or use a new run_dir",
        )
    return table


def jsonl_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return one canonical JSON line per row, sorted by id and then by the line; a `Sample` is written as JSON."""
    lines = [(str(row["id"]), escape_surrogates(canonical_json(_jsonable(row)))) for row in rows]
    return "".join(f"{line}\n" for _, line in sorted(lines)).encode()


def read_jsonl(data: bytes) -> list[dict[str, Any]]:
    """Return the rows."""
    return [json.loads(line) for line in data.decode().split("\n") if line]


def escape_surrogates(text: str) -> str:
    """Write lone surrogates in JSON text as `\\udXXX`, which reads back as itself and is valid UTF-8.

    Model replies do contain them: half an emoji, cut by a token limit inside an escaped JSON string.
    """
    if _SPLIT_PAIR.search(text):
        raise explain(
            what="a text holds one character as two surrogates, which JSON would silently join",
            where=f"writing {text[:80]!r}",
            fix="decode the model's reply as UTF-8 once it is whole, not piece by piece",
        )
    return _SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _readable(text: str | None) -> str | None:
    """For the columns people look at; the exact text is in `record`."""
    return None if text is None else _SURROGATE.sub("\ufffd", text)


def _jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to_plain() if isinstance(value, Sample) else value for key, value in row.items()}
