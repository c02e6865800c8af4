"""Hugging Face chat data sets: a column of messages and a column of images, read through `datasets`.

saved folder, Parquet or Arrow files, or a name on the Hub --datasets, images left encoded--> Stored
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, final

from infinity_mm.data.conversation import Conversation, Outline, Turns
from infinity_mm.data.readers.stored import Stored, chat_messages
from infinity_mm.errors import explain, need
from infinity_mm.record import digest
from infinity_mm.sources.json_rows import BadRow

_FILES = {".parquet": "parquet", ".arrow": "arrow"}


@final
@dataclass(frozen=True)
class ChatSource:
    """`messages` of role and content (text or typed parts; or LLaVA's from and value), `images` as `datasets` has them.

    Rows without images are rows of text; several images are taken in order.
    """

    path: str
    """A folder of `save_to_disk`, a Parquet or Arrow file or a folder of them, or a data set's name on the Hub."""
    split: str = "train"
    """Which split, where there are several."""
    name: str | None = None
    """Configuration of a data set on the Hub."""
    revision: str | None = None
    """Commit of a data set on the Hub."""
    messages: str = "messages"
    """Column of the conversation."""
    images: str = "images"
    """Column of the image or images; it may be missing."""
    id: str = "id"
    """Column of the id; where it is missing the row number is the id."""
    domain: str = "source"
    """Column of the domain; it may be missing."""
    turns: Turns = "causal"

    @property
    def fingerprint(self) -> str:
        """Hash of the columns, the number of rows and the names and sizes of the files behind the data set."""
        rows = self._rows()
        files = sorted(Path(file["filename"]) for file in rows.cache_files)
        return digest("chat", self.split, str(rows.features), str(len(rows)),
                      *(f"{file.name}/{file.stat().st_size}" for file in files))  # fmt: skip

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows())

    def __getitem__(self, index: int) -> Conversation:
        """The conversation in row `index`."""
        return self._stored(index).conversation()

    def outline(self, index: int) -> Outline:
        """Its messages and image sizes."""
        return self._stored(index).outline()

    def _rows(self) -> Any:
        rows = _load(self.path, self.split, self.name, self.revision, self.images)
        if self.messages not in rows.column_names:
            raise explain(
                what=f"{self.path} has no column `{self.messages}`, only {', '.join(rows.column_names)}",
                where="data options of kind `chat`",
                fix="name the column with messages: ...",
            )
        return rows

    def _stored(self, index: int) -> Stored:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row: Mapping[str, Any] = self._rows()[index]
        found = row.get(self.images) or []
        id_ = row.get(self.id)
        return Stored(
            id=str(index if id_ is None else id_),
            images=tuple(_image(image) for image in (found if isinstance(found, list) else [found])),
            messages=chat_messages(row[self.messages] or ()),
            domain=str(row.get(self.domain) or "default"),
        )


def _image(image: object) -> bytes | Path:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image:
        return Path(image)
    raise BadRow("null_image", f"a {type(image).__name__}")


@lru_cache(maxsize=8)
def _load(path: str, split: str, name: str | None, revision: str | None, images: str) -> Any:
    """The data set with images left as they are stored: opening them is for later."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise need("datasets", extra="publish", purpose="data of kind `chat`") from error
    rows = _open(datasets, Path(path), path, split, name, revision)
    kind = rows.features.get(images)
    if kind is not None:
        rows = rows.cast_column(images, _undecoded(datasets, kind))
    return rows


def _open(datasets: Any, local: Path, path: str, split: str, name: str | None, revision: str | None) -> Any:
    if not local.exists():
        return datasets.load_dataset(path, name, split=split, revision=revision)
    if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(path)
        if isinstance(saved, Mapping) and split not in saved:
            raise explain(
                what=f"{path} has no split `{split}`, only {', '.join(saved)}",
                where="data options of kind `chat`",
                fix="name one with split: ...",
            )
        return saved[split] if isinstance(saved, Mapping) else saved
    files = [local] if local.is_file() else sorted(f for f in local.rglob("*") if f.suffix in _FILES)
    kinds = {_FILES[file.suffix] for file in files if file.suffix in _FILES}
    if len(kinds) != 1:
        raise explain(
            what=f"{path} holds no Parquet or Arrow files"
            if not kinds
            else f"{path} holds both Parquet and Arrow",
            where="data options of kind `chat`",
            fix="give a folder of save_to_disk, a .parquet or .arrow file, or a folder of either",
        )
    (kind,) = kinds
    parts = [datasets.Dataset.from_file(str(f)) for f in files] if kind == "arrow" else None
    if parts is not None:
        return datasets.concatenate_datasets(parts)
    return datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")


def _undecoded(datasets: Any, kind: Any) -> Any:
    """The feature with `decode=False` wherever it is an image."""
    if isinstance(kind, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(kind, datasets.List):
        return datasets.List(_undecoded(datasets, kind.feature))
    return cast(Sequence[Any], kind)
