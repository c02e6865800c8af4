"""What two trainers read: JSON lines of `messages` with `<image>` in plain text, and `images`; written only.

Row --> train.jsonl + images/                       ms-swift, its standard format
Row --> train.jsonl + images/ + dataset_info.json   LLaMA-Factory, `sharegpt` formatting with OpenAI tags

Sources: ms-swift, docs/source_en/Customization/Custom-dataset.md, section Multimodal; LLaMA-Factory, data/README.md
and data/dataset_info.json (mllm_demo). Both take image paths; what is relative is looked up in a folder given to them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TextIO, final

from infinity_mm.formats.base import Row, text_of
from infinity_mm.formats.image_files import ImageFiles
from infinity_mm.sources.json_rows import BadRow

DATA_FILE = "train.jsonl"
DATASET_INFO = {
    "train": {
        "file_name": DATA_FILE,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
}
"""LLaMA-Factory's description of the file: `dataset: train`, `dataset_dir:` the folder."""
_OTHER_PLACEHOLDERS = ("<video>", "<audio>")
"""Both trainers read these in any text as places of other media."""


@final
class TrainerWriter:
    """`train.jsonl`, image files beside it, and `dataset_info.json` where one is wanted."""

    def __init__(self, folder: Path, *, dataset_info: bool) -> None:
        self.not_carried: Counter[str] = Counter()
        self._path, self._images = folder / DATA_FILE, ImageFiles(folder)
        self._file: TextIO = open(self._path, "w", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        if dataset_info:
            text = json.dumps(DATASET_INFO, indent=2) + "\n"
            (folder / "dataset_info.json").write_text(text, encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append a row; both trainers drop or choke on further columns, so ids and the like are not carried."""
        messages = [{"role": turn.role, "content": text_of(turn)} for turn in row.turns]
        for message in messages:
            for placeholder in _OTHER_PLACEHOLDERS:
                if placeholder in message["content"]:
                    raise BadRow("placeholder_in_text", f"a text holds `{placeholder}`")
        entry = {"messages": messages, "images": [self._images.put(picture) for picture in row.pictures]}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        columns = {name: getattr(row, name) for name in ("id", "source", "licence", "provenance")}
        self.not_carried.update(name for name, value in columns.items() if value is not None)
        self.not_carried.update(f"meta.{key}" for key in row.meta)

    def close(self) -> int:
        """Close the file; rows counted by reading it again."""
        self._file.close()
        with open(self._path, encoding="utf-8") as file:
            return sum(1 for _ in file)
