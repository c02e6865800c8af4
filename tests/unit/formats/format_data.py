"""Small pictures and data sets in several formats, made where they are needed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image


def png(seed: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """A picture of one colour; another seed, other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (seed % 256, seed // 256 % 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def jpg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def talk(question: str, answer: str = "Yes.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        streams = {member.name: archive.extractfile(member) for member in archive}
        return {name: stream.read() for name, stream in streams.items() if stream}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rejected(folder: Path) -> list[tuple[int, str]]:
    """(row number, reason) of what was not taken."""
    return [(line["row"], line["reason"]) for line in read_jsonl(folder / "rejected.jsonl")]
