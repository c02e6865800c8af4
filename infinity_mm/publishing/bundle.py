"""What is to be published: files with sizes and hashes, described before anything is sent.

run directory or checkpoint --> Bundle (files, card, manifest, digest) --> hub.publish
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infinity_mm.record import canonical_json, digest

CARD = "README.md"
MANIFEST = "infinity_mm.json"
"""Lists every other file of the set; on `main` it appears with them or not at all."""
Kind = Literal["dataset", "model"]
Content = bytes | Path


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the repository."""

    path: str
    """In the repository."""
    bytes: int
    sha256: str
    load: Callable[[], Content]
    """Its bytes, or where they lie on this machine."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """One complete set."""

    kind: Kind
    files: tuple[File, ...]
    """By path, the manifest among them."""
    digest: str
    """Of paths, sizes and hashes of all files but the manifest: the same content has the same digest."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files beside them that are not published -> why."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


def make_bundle(kind: Kind, files: Sequence[File], *, left_out: Mapping[str, str] | None = None) -> Bundle:
    """Add the manifest and the digest."""
    rows = [
        {"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in sorted(files, key=lambda f: f.path)
    ]
    of_all = digest(kind, canonical_json(rows))
    body = {"format": 1, "kind": kind, "digest": of_all, "files": rows}
    manifest = made_file(MANIFEST, (json.dumps(body, indent=1) + "\n").encode())
    whole = sorted([*files, manifest], key=lambda file: file.path)
    return Bundle(kind=kind, files=tuple(whole), digest=of_all, left_out=dict(left_out or {}))


def listed(manifest: bytes) -> list[str]:
    """Paths that a manifest lists, itself included; none if it is no manifest of ours."""
    try:
        body = json.loads(manifest)
        return [MANIFEST, *(str(row["path"]) for row in body["files"])]
    except (ValueError, KeyError, TypeError):
        return []


def made_file(path: str, data: bytes) -> File:
    """A file made here."""
    return File(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), load=lambda: data)


def disk_file(path: str, source: Path) -> File:
    """A file of this machine, read once for its hash and never held in memory."""
    with source.open("rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    return File(path=path, bytes=source.stat().st_size, sha256=sha256, load=lambda: source)
