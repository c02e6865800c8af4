"""Turns that a run made, written back onto the Infinity-MM shards that its images came from.

SHARDS/a/0.tar --member by member, same names, same order--> OUT/a/0.tar
    a record whose image the run has a conversation about: its turns, then those that were made (boxes in thousandths)
    after it: one more record for each further conversation about the image
    everything else: byte by byte as it was

Every conversation of the run ends in one record, or in rejected.jsonl with the reason.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from infinity_mm.data.regions import THOUSANDTHS, write_regions
from infinity_mm.dedup.text import normalise
from infinity_mm.errors import UserError, explain
from infinity_mm.formats.base import PLACEHOLDER, files_below
from infinity_mm.formats.infinity_mm import entry_of, groups, members, name_of
from infinity_mm.record import ConservationError, canonical_json
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.storage.files import whole_folder

REJECTED_FILE, SUMMARY_FILE = "rejected.jsonl", "summary.json"
_COLUMNS = ["id", "messages", "provenance"]
_ONE_IMAGE = (1000, 1000)
"""A frame for what is written in thousandths, whatever the image's size."""
_NAMES = {"user": "human", "assistant": "gpt"}


@dataclass(kw_only=True)
class _Made:
    """Where the run's conversations lie, by the hash of their image; texts are read when their record comes."""

    files: Sequence[Path]
    places: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    """SHA-256 -> (file, row group, row in it) of each conversation, in order of their ids."""
    num_rows: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, files: Sequence[Path]) -> _Made:
        """From published files, without their images."""
        made = cls(files=files)
        for number, path in enumerate(files):
            with pq.ParquetFile(path) as parquet:
                for group in range(parquet.metadata.num_row_groups):
                    table = parquet.read_row_group(group, columns=["id", "provenance"])
                    for row, line in enumerate(table.to_pylist()):
                        made._place(line, (number, group, row))
        return made

    def _place(self, line: Mapping[str, Any], place: tuple[int, int, int]) -> None:
        self.num_rows += 1
        images = json.loads(line["provenance"] or "{}").get("images", [])
        if len(images) != 1:
            self.reject(str(line["id"]), "several_images" if images else "no_provenance")
        else:
            self.places.setdefault(images[0]["sha256"], []).append(place)

    def about(self, sha256: str) -> list[dict[str, Any]]:
        """The rows about an image, once: a second record of the same image is left as it is."""
        rows = []
        for number, group, row in self.places.pop(sha256, []):
            rows.append(_row_group(self.files[number], group).slice(row, 1).to_pylist()[0])
        return rows

    def reject(self, id_: str, reason: str) -> None:
        """A conversation that no record takes."""
        self.rejected.append({"id": id_, "reason": reason})


@lru_cache(maxsize=64)
def _row_group(path: Path, group: int) -> Any:
    with pq.ParquetFile(path) as parquet:
        return parquet.read_row_group(group, columns=_COLUMNS)


@dataclass(slots=True)
class _Record:
    """Members of one sample as they stand in the tar."""

    key: str
    parts: list[tuple[tarfile.TarInfo, str, bytes]] = field(default_factory=list)
    """Header, suffix, content."""


def extend_shards(published: Sequence[Path], shards: Path, out: Path) -> dict[str, Any]:
    """Write every tar below `shards` to the new folder `out`, extended; returns the counts.

    Raises `UserError` for a tar that cannot be read to its end: a set that is not whole is not handed on.
    """
    tars = files_below(shards, ".tar") if shards.exists() else []
    if not tars:
        raise explain(
            what=f"there is no tar at {shards}", where="--onto", fix="give a tar or a folder of them"
        )
    made = _Made.read(published)
    counts: Counter[str] = Counter(dict.fromkeys(("records", "extended", "added", "turns"), 0))
    with whole_folder(out) as folder:
        for name, path in tars:
            _check_whole(name, path)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
                for record in _records(path):
                    for one in _extended(record, made, counts):
                        for header, _, data in one.parts:
                            archive.addfile(header, io.BytesIO(data))
                        archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
        for places in list(made.places.values()):
            for number, group, row in places:
                made.reject(_row_group(made.files[number], group)["id"][row].as_py(), "image_not_in_shards")
        _check_sums(folder, made, counts)
        lines = sorted(canonical_json(row) + "\n" for row in made.rejected)
        (folder / REJECTED_FILE).write_text("".join(lines), encoding="utf-8")
        summary = {
            "read": "messages",
            "written": "infinity-mm",
            "rows": made.num_rows,
            "taken": counts["extended"] + counts["added"],
            "rejected": len(made.rejected),
            "text_only": 0,
            "multi_image": 0,
            "reasons": dict(sorted(Counter(row["reason"] for row in made.rejected).items())),
            "not_carried": {},
            "tars": len(tars),
            **counts,
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (folder / SUMMARY_FILE).write_text(text, encoding="utf-8")
    return summary


def _check_whole(name: str, path: Path) -> None:
    with open(path, "rb") as file:
        for _, _, found in members(file):
            if isinstance(found, BadRow) and found.reason in ("broken_archive", "not_a_tar", "empty_file"):
                raise explain(
                    what=f"{name} cannot be read to its end: {found.reason} {found.detail}",
                    where="--onto",
                    fix="fetch the tar again, or leave it out",
                )


def _records(path: Path) -> Iterator[_Record]:
    """Members that follow each other under one key, whatever they are; a folder goes with what stands before it."""
    current = _Record("")
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (member := archive.next()) is not None:
            key, suffix, _ = name_of(member)
            if not member.isdir() and key != current.key:
                yield current
                current = _Record(key)
            stream = archive.extractfile(member) if member.isreg() else None
            current.parts.append((member, suffix, stream.read() if stream else b""))
            archive.members = []  # type: ignore[attr-defined]
    yield current


def _extended(record: _Record, made: _Made, counts: Counter[str]) -> Iterator[_Record]:
    """The record, with what was made for its image, and the records that come after it."""
    inside = [(suffix, data) for header, suffix, data in record.parts if not header.isdir()]
    counts["records"] += bool(inside)
    content = dict(inside)
    rows: list[dict[str, Any]] = []
    if len(inside) == 2 and content.keys() == {"json", "jpg"} and content["jpg"]:
        try:
            entry = entry_of(content["json"], record.key)
        except (BadRow, RecursionError):
            entry = {}
        if isinstance(entry.get("conversations"), list):
            rows = made.about(hashlib.sha256(content["jpg"]).hexdigest())
    whole: dict[str, Any] | None = None
    further: list[_Record] = []
    for row in rows:
        base = entry["conversations"] if whole is None else []
        try:
            talk, provenance = _made_turns(row, base)
        except BadRow as bad:
            made.reject(row["id"], bad.reason)
            continue
        counts["turns"] += len(talk)
        if whole is None:
            whole = {**entry, "conversations": [*base, *talk], "provenance": provenance}
            counts["extended"] += 1
        else:
            number = f"c{len(further) + 1}"
            talk[0]["value"] = f"{PLACEHOLDER}\n{talk[0]['value']}"
            more = {
                **entry,
                "id": f"{entry.get('id')}.{number}",
                "conversations": talk,
                "provenance": provenance,
            }
            further.append(_rewritten(record, f"_infinity_mm_{number}", more))
            counts["added"] += 1
    yield record if whole is None else _rewritten(record, "", whole)
    yield from further


def _made_turns(row: Mapping[str, Any], base: Sequence[Any]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The made turns of a row in LLaVA's words, without an image place, and their provenance; raises `BadRow`."""
    provenance = json.loads(row["provenance"])
    messages = row["messages"][provenance.get("source_turns", 0) :]
    talk: list[dict[str, str]] = []
    for message in messages:
        text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        try:
            text = write_regions(text, THOUSANDTHS, [_ONE_IMAGE])
        except UserError as error:
            raise BadRow("region_of_no_image", "a box or point in an image that is not there") from error
        if PLACEHOLDER in text:
            raise BadRow("placeholder_in_text", "a made text that would be read as an image")
        talk.append({"from": _NAMES[message["role"]], "value": text})
    asked = {
        normalise(str(turn.get("value")).replace(PLACEHOLDER, "")) for turn in base if isinstance(turn, dict)
    }
    pairs = [
        pair for pair in zip(talk[0::2], talk[1::2], strict=True) if normalise(pair[0]["value"]) not in asked
    ]
    if not pairs:
        raise BadRow("asked_in_source" if talk else "nothing_made")
    # Which turns are whose: the last so many are made, the others were there.
    return [turn for pair in pairs for turn in pair], {**provenance, "made_turns": 2 * len(pairs)}


def _rewritten(record: _Record, ending: str, entry: Mapping[str, Any]) -> _Record:
    """The record under another key, with another JSON member; the image's bytes stay."""
    text = json.dumps(entry, ensure_ascii=False).encode()
    parts = []
    for header, suffix, data in record.parts:
        if header.isdir():
            if not ending:
                parts.append((header, suffix, data))
            continue
        header = copy.copy(header)
        header.pax_headers = {}
        head, _, tail = header.name.rpartition("/")
        base, dot, rest = tail.partition(".")
        header.name = f"{head}/{base}{ending}{dot}{rest}" if head else f"{base}{ending}{dot}{rest}"
        data = text if suffix == "json" else data
        header.size = len(data)
        parts.append((header, suffix, data))
    return _Record(record.key + ending, parts)


def _check_sums(folder: Path, made: _Made, counts: Mapping[str, int]) -> None:
    """Every conversation in a record or rejected; as many samples in the written tars as were read and added."""
    written = 0
    for _, path in files_below(folder, ".tar"):
        with open(path, "rb") as file:
            written += sum(1 for _ in groups(file))
    taken = counts["extended"] + counts["added"]
    if made.num_rows != taken + len(made.rejected) or written != counts["records"] + counts["added"]:
        raise ConservationError(
            f"{made.num_rows} conversations, {len(made.rejected)} rejected, {dict(counts)}, {written}"
        )
