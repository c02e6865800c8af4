"""Infinity-MM's own layout: WebDataset tars with a `json` and a `jpg` member per sample, read where they lie.

tars --heads of members, once--> table of places --two reads--> Stored

A `jpg` of no bytes means a sample of text; the ending says nothing about what the bytes are.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from infinity_mm.data.conversation import Conversation, Outline, Turns
from infinity_mm.data.readers.stored import Stored, chat_messages
from infinity_mm.errors import explain
from infinity_mm.formats.base import files_below
from infinity_mm.formats.infinity_mm import Span, members
from infinity_mm.record import digest
from infinity_mm.sources.json_rows import BadRow

_ABSENT = -1


@final
@dataclass(frozen=True)
class TarSource:
    """Samples in order of the tars' names and of their places in the tar."""

    path: str
    """A tar, or a folder with tars at any depth, such as Infinity-MM's `stage2`."""
    places: str | None = None
    """File that keeps where every sample lies, written at the first use. Without it every process goes through the
    heads of all tars once."""
    turns: Turns = "causal"

    @property
    def fingerprint(self) -> str:
        """Hash of names and sizes of the tars."""
        return digest("infinity_mm", *(f"{name}/{path.stat().st_size}" for name, path in _tars(self.path)))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._places())

    def __getitem__(self, index: int) -> Conversation:
        """The conversation of sample `index`."""
        return self._stored(index).conversation()

    def outline(self, index: int) -> Outline:
        """Its messages and image size."""
        return self._stored(index).outline()

    def _places(self) -> NDArray[np.int64]:
        return _places(self)

    def _stored(self, index: int) -> Stored:
        if not 0 <= index < len(self):
            raise IndexError(index)
        tar, json_at, json_size, image_at, image_size = map(int, self._places()[index])
        name, path = _tars(self.path)[tar]
        if _ABSENT in (json_at, image_at):
            missing = "json" if json_at == _ABSENT else "jpg"
            raise BadRow(f"no_{missing}_member", f"a sample of {name}")
        with open(path, "rb") as file:
            text, data = Span(json_at, json_size).read(file), Span(image_at, image_size).read(file)
        try:
            row: Any = json.loads(text.decode("utf-8-sig"))
        except ValueError as error:
            raise BadRow("invalid_json", f"{name}: {error}"[:200]) from error
        if not isinstance(row, dict):
            raise BadRow("row_not_an_object", f"a {type(row).__name__}")
        return Stored(
            id=str(row.get("id") or f"{name}/{index}"),
            images=(data,) if data else (),
            messages=chat_messages(row.get("conversations") or ()),
            domain=str(row.get("source") or "default"),
        )


@lru_cache(maxsize=16)
def _tars(path: str) -> list[tuple[str, Path]]:
    found = files_below(Path(path), ".tar") if Path(path).exists() else []
    if not found:
        raise explain(what=f"no tar at {path}", where="YAML section `data`", fix="correct data[].path")
    return found


@lru_cache(maxsize=16)
def _places(source: TarSource) -> NDArray[np.int64]:
    """(N, 5): tar, place and size of the JSON, place and size of the image; -1 for a member that is not there.

    The tars are looked at when a process first asks, not for every sample.
    """
    if source.places is not None:
        file, fingerprint = Path(source.places), source.fingerprint
        if file.is_file():
            with np.load(file) as found:
                if str(found["fingerprint"]) == fingerprint:
                    return found["places"]
        table = _scan(source.path)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with open(partial, "wb") as stream:
            np.savez(stream, fingerprint=np.array(fingerprint), places=table)
        os.replace(partial, file)
        return table
    return _scan(source.path)


def _scan(path: str) -> NDArray[np.int64]:
    rows: list[list[int]] = []
    for number, (name, tar) in enumerate(_tars(path)):
        last = None
        with open(tar, "rb") as file:
            for key, suffix, found in members(file):
                if isinstance(found, BadRow) and found.reason in (
                    "broken_archive",
                    "not_a_tar",
                    "empty_file",
                ):
                    raise explain(
                        what=f"{name} cannot be read to its end: {found.reason} {found.detail}",
                        where=path,
                        fix="fetch the tar again; a set that is not whole is not trained on without a word",
                    )
                if key != last:
                    rows.append([number, _ABSENT, 0, _ABSENT, 0])
                    last = key
                if isinstance(found, Span) and suffix in ("json", "jpg"):
                    column = 1 if suffix == "json" else 3
                    rows[-1][column : column + 2] = [found.offset, found.size]
    return np.array(rows, dtype=np.int64).reshape(-1, 5)
