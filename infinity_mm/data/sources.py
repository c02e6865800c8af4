"""Readers of training data, by the `kind:` a YAML file names.

    kind, path, options --build_source--> ConversationSource

Readers index lazily and open files in the process that reads, so they can be sent to workers.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, final

import pyarrow.parquet as pq
from PIL import Image

from infinity_mm.data.conversation import IMAGE_PLACEHOLDER, Conversation, ConversationSource, Message, Turns
from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.storage.files import open_fs
from infinity_mm.vision.images import decode_image


@lru_cache(maxsize=64)
def _parquet(path: str) -> pq.ParquetFile:
    filesystem, inner = open_fs(path)
    return pq.ParquetFile(cast(Any, filesystem.open(inner, "rb")))


@lru_cache(maxsize=2)
def _row_group(path: str, group: int) -> list[dict[str, Any]]:
    """Rows of one row group; two are kept, because neighbouring samples share one."""
    return _parquet(path).read_row_group(group).to_pylist()


@final
@dataclass(frozen=True)
class ParquetSource:
    """Our published format: `images` list of {bytes, path}, `messages` list of {role, content: [{type, text}]}.

    What `infinity-mm import` writes is the same: rows of text have no images, rows of several have one place each.
    """

    path: str
    """A file, a folder or a pattern with `*`; local or any URL that fsspec reads."""
    turns: Turns = "causal"

    @property
    def fingerprint(self) -> str:
        """Hash of names, row counts and the files' own metadata sizes."""
        return digest("parquet", *(f"{Path(f).name}/{n}" for f, _, n in _parquet_groups(self.path)))

    def __len__(self) -> int:
        """Number of rows."""
        return sum(rows for _, _, rows in _parquet_groups(self.path))

    def __getitem__(self, index: int) -> Conversation:
        """The conversation in row `index`, files in order of their names."""
        for file, group, rows in _parquet_groups(self.path):
            if index < rows:
                return _from_row(
                    _row_group(file, group)[index], fallback_id=f"{Path(file).name}/{group}/{index}"
                )
            index -= rows
        raise IndexError(index)


@lru_cache(maxsize=16)
def _parquet_groups(path: str) -> tuple[tuple[str, int, int], ...]:
    """(file, row group, rows) of all files, in order."""
    filesystem, inner = open_fs(path)
    if filesystem.isdir(inner):
        inner = f"{inner.rstrip('/')}/**/*.parquet"
    files = cast("list[str]", sorted(filesystem.glob(inner)) if "*" in inner else [inner])
    if not files or not filesystem.exists(files[0]):
        raise explain(
            what=f"no Parquet file at {path}", where="YAML section `data`", fix="correct data[].path"
        )
    groups: list[tuple[str, int, int]] = []
    for file in files:
        url = filesystem.unstrip_protocol(file)
        metadata = _parquet(url).metadata
        groups += [(url, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)]
    return tuple(groups)


def _from_row(row: Mapping[str, Any], fallback_id: str) -> Conversation:
    messages: list[Message] = []
    for message in row["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(
                IMAGE_PLACEHOLDER if part["type"] == "image" else part["text"] for part in content
            )
        messages.append(Message(message["role"], _tight(content)))
    return Conversation(
        id=str(row.get("id") or fallback_id),
        images=tuple(decode_image(image["bytes"]) for image in row.get("images") or ()),
        messages=tuple(messages),
        domain=str(row.get("source") or "default"),
    )


def _tight(text: str) -> str:
    """LLaVA writes "<image>\\n"; our chat template has nothing between an image and the text."""
    return text.replace(f"{IMAGE_PLACEHOLDER}\n", IMAGE_PLACEHOLDER)


@final
@dataclass(frozen=True)
class LlavaJsonSource:
    """LLaVA's format: a JSON list or JSON lines of {id, image, conversations: [{from, value}]}."""

    path: str
    """The JSON file."""
    image_folder: str
    """Folder that `image` is relative to."""
    turns: Turns = "causal"

    @property
    def fingerprint(self) -> str:
        """Hash of the JSON file."""
        return digest("llava_json", hashlib.sha256(Path(self.path).read_bytes()).hexdigest())

    def __len__(self) -> int:
        """Number of conversations."""
        return len(_llava_rows(self.path))

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at `index` of the list."""
        row = _llava_rows(self.path)[index]
        names = row.get("image") or []
        names = [names] if isinstance(names, str) else names
        roles = {
            "human": "user",
            "user": "user",
            "gpt": "assistant",
            "assistant": "assistant",
            "system": "system",
        }
        return Conversation(
            id=str(row.get("id", index)),
            images=tuple(_read_image(Path(self.image_folder) / name) for name in names),
            messages=tuple(
                Message(cast(Any, roles[m["from"]]), _tight(m["value"])) for m in row["conversations"]
            ),
        )


@lru_cache(maxsize=4)
def _llava_rows(path: str) -> list[dict[str, Any]]:
    text = Path(path).read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _read_image(path: Path) -> Image.Image:
    return decode_image(path.read_bytes())


def _windtunnel(**options: Any) -> ConversationSource:
    """Imported only when asked for: other runs need not know the wind tunnel."""
    return importlib.import_module("infinity_mm.windtunnel.tasks").WindTunnelTasks(**options)


SOURCES: dict[str, Callable[..., ConversationSource]] = {
    "parquet": ParquetSource,
    "llava_json": LlavaJsonSource,
    "windtunnel": _windtunnel,
}


def build_source(kind: str, options: Mapping[str, Any]) -> ConversationSource:
    """The source of one entry of the YAML section `data`."""
    if kind not in SOURCES:
        raise explain(
            what=f"unknown data kind `{kind}`",
            where="YAML section `data`",
            fix=f"use one of {', '.join(SOURCES)}",
        )
    try:
        return SOURCES[kind](**options)
    except TypeError as error:
        raise explain(
            what=f"the options of data kind `{kind}` do not fit: {error}",
            where="YAML section `data`, `options`",
            fix="see the fields of the source's class in infinity_mm/data/sources.py",
        ) from error
