"""`infinity-mm import` and `infinity-mm export`: one reader, one writer, and the sums at the end.

reader --rows--> writer --> DIR/<files of the format>
            \\--> DIR/rejected.jsonl, one line per row that was not taken      DIR/summary.json, the counts

DIR appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from infinity_mm.errors import explain
from infinity_mm.formats.base import Reader, Rejected, Row, Writer, files_below
from infinity_mm.formats.coco import CocoReader
from infinity_mm.formats.extend import REJECTED_FILE, SUMMARY_FILE, extend_shards
from infinity_mm.formats.infinity_mm import InfinityMMReader, InfinityMMWriter
from infinity_mm.formats.llava import LlavaReader, LlavaWriter
from infinity_mm.formats.messages import MessagesReader, MessagesWriter
from infinity_mm.formats.trainers import TrainerWriter
from infinity_mm.record import ConservationError, canonical_json
from infinity_mm.runtime.run import Run
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.storage.files import whole_folder
from infinity_mm.synth.publish_pass import refuse_simulated

ImportFormat = Literal["llava", "messages", "infinity-mm", "coco"]
ExportFormat = Literal["messages", "llava", "infinity-mm", "swift", "llamafactory"]
PUBLISH_PASS = "publish"

WRITERS: dict[str, Callable[[Path], Writer]] = {
    "messages": MessagesWriter,
    "llava": LlavaWriter,
    "infinity-mm": InfinityMMWriter,
    "swift": lambda folder: TrainerWriter(folder, dataset_info=False),
    "llamafactory": lambda folder: TrainerWriter(folder, dataset_info=True),
}


def import_data(
    format: str,
    path: Path,
    out: Path,
    *,
    images: Path | None = None,
    source: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write `path` in our published layout to the new folder `out` and return the counts.

    `source` and `licence` fill in for rows that name none. Raises `UserError` for paths and formats, never for
    what a row or file holds.
    """
    reader = _reader(_one_of(format, ImportFormat, "FORMAT"), path, images)
    return convert(reader, "messages", out, {"read": format}, defaults={"source": source, "licence": licence})


def export_data(run_or_folder: Path, to: str, out: Path) -> dict[str, Any]:
    """Write a run's published rows, or an imported folder, in another format to the new folder `out`."""
    files = _published_files(run_or_folder)
    _one_of(to, ExportFormat, "--to")
    return convert(MessagesReader(files, check_images=False), to, out, {"read": "messages"})


def extend_data(run_or_folder: Path, shards: Path, out: Path) -> dict[str, Any]:
    """Write what a run made onto the Infinity-MM tars its images came from, to the new folder `out`."""
    _refuse_existing(out)
    return extend_shards([path for _, path in _published_files(run_or_folder)], shards, out)


def convert(
    reader: Reader,
    to: str,
    out: Path,
    labels: dict[str, str],
    *,
    defaults: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """Move every row; the counts are compared with those of the written files."""
    _refuse_existing(out)
    reasons: Counter[str] = Counter()
    counts: Counter[str] = Counter(
        dict.fromkeys(("rows", "taken", "rejected", "text_only", "multi_image", "images", "image_bytes"), 0)
    )
    with whole_folder(out) as folder:
        writer = WRITERS[to](folder)
        try:
            with open(folder / REJECTED_FILE, "w", encoding="utf-8") as rejected:
                for row in reader.read():
                    if row.number != counts["rows"]:
                        raise ConservationError(f"row {counts['rows']} was expected, row {row.number} came")
                    counts["rows"] += 1
                    if isinstance(row, Row):
                        row = _write(writer, _filled(row, defaults or {}))
                    if isinstance(row, Rejected):
                        counts["rejected"] += 1
                        reasons[row.reason] += 1
                        rejected.write(_line(row) + "\n")
                    else:
                        _count(counts, row)
        finally:
            written = writer.close()
        if written != counts["taken"] or counts["rows"] != counts["taken"] + counts["rejected"]:
            raise ConservationError(f"{dict(counts)}, but {written} rows are in the files")
        summary = {
            **labels,
            "written": to,
            **counts,
            "reasons": dict(sorted(reasons.items())),
            "not_carried": dict(sorted((reader.not_carried + writer.not_carried).items())),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (folder / SUMMARY_FILE).write_text(text, encoding="utf-8")
    return summary


def _write(writer: Writer, row: Row) -> Row | Rejected:
    try:
        writer.write(row)
    except BadRow as bad:
        return Rejected(number=row.number, id=row.id, file=row.file, reason=bad.reason, detail=bad.detail)
    return row


def _filled(row: Row, defaults: dict[str, str | None]) -> Row:
    missing = {
        key: value for key, value in defaults.items() if value is not None and getattr(row, key) is None
    }
    return dataclasses.replace(row, **missing) if missing else row


def _count(counts: Counter[str], row: Row) -> None:
    counts["taken"] += 1
    counts["text_only"] += not row.pictures
    counts["multi_image"] += len(row.pictures) > 1
    counts["images"] += len(row.pictures)
    counts["image_bytes"] += sum(len(picture.data) for picture in row.pictures)


def _line(row: Rejected) -> str:
    plain = {"id": row.id, "row": row.number, "file": row.file, "reason": row.reason, "detail": row.detail}
    return canonical_json(plain).encode("utf-8", "backslashreplace").decode()


def _reader(format: str, path: Path, images: Path | None) -> Reader:
    if images is not None and not images.is_dir():
        raise explain(what=f"there is no folder {images}", where="--images", fix="give an existing folder")
    if format in ("llava", "coco"):
        if not path.is_file():
            raise explain(
                what=f"there is no file {path}", where="PATH", fix=f"give the JSON file; {format} is one file"
            )
        return LlavaReader(path, images) if format == "llava" else CocoReader(path, images)
    if not path.exists():
        raise explain(what=f"there is nothing at {path}", where="PATH", fix="give an existing file or folder")
    suffix = ".tar" if format == "infinity-mm" else ".parquet"
    files = files_below(path, suffix)
    if not files:
        raise explain(
            what=f"no `*{suffix}` file below {path}", where="PATH", fix="give the folder of the data set"
        )
    return InfinityMMReader(files) if format == "infinity-mm" else MessagesReader(files, images)


def _published_files(path: Path) -> list[tuple[str, Path]]:
    """What a finished run published, or the Parquet files of a folder."""
    if (path / "run.json").is_file():
        run = Run(str(path))
        refuse_simulated(run)
        return [(name, Path(run.path(stored))) for name, stored in run.committed_files(PUBLISH_PASS)]
    if not path.exists():
        raise explain(what=f"there is nothing at {path}", where="RUN_OR_FOLDER", fix="give an existing one")
    files = files_below(path, ".parquet")
    if not files:
        raise explain(
            what=f"no Parquet file below {path}",
            where="RUN_OR_FOLDER",
            fix="give a run directory, or a folder that `infinity-mm import` wrote",
        )
    return files


def _one_of(name: str, formats: Any, where: str) -> str:
    known = get_args(formats)
    if name not in known:
        raise explain(what=f"there is no format `{name}`", where=where, fix=f"use one of {', '.join(known)}")
    return name


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise explain(
            what=f"{out} exists already",
            where="--out",
            fix="give a new folder, or remove the old one: outputs are written whole, never mixed",
        )
