"""LLaVA's format: a JSON list, or one JSON object per line, of {id, image, conversations: [{from, value}]}.

data.json, image folder --> Stored
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from infinity_mm.data.conversation import Conversation, Outline, Turns
from infinity_mm.data.readers.stored import Stored, chat_messages
from infinity_mm.record import digest
from infinity_mm.sources.json_rows import BadRow, Broken, json_rows


@final
@dataclass(frozen=True)
class LlavaJsonSource:
    """Rows may hold no image, one name, or a list of names."""

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
        return len(_rows(self.path))

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at `index` of the list."""
        return self._stored(index).conversation()

    def outline(self, index: int) -> Outline:
        """Its messages and image sizes; images are not read beyond their headers."""
        return self._stored(index).outline()

    def _stored(self, index: int) -> Stored:
        row = _rows(self.path)[index]
        if isinstance(row, Broken):
            raise BadRow(row.reason, row.detail)
        if not isinstance(row, Mapping):
            raise BadRow("row_not_an_object", f"a {type(row).__name__}")
        names = row.get("image") or []
        names = [names] if isinstance(names, str) else names
        return Stored(
            id=str(row.get("id", index)),
            images=tuple(Path(self.image_folder) / name for name in names),
            messages=chat_messages(row.get("conversations") or ()),
            domain=str(row.get("source") or "default"),
        )


@lru_cache(maxsize=4)
def _rows(path: str) -> list[Any]:
    return list(json_rows(path))
