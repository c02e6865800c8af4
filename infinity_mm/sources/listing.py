"""The files of one kind behind a path: a file, a folder, or a pattern, local or behind an fsspec URL.

path --Files.list--> (name, url)*, sorted by name        name --Files.url--> url
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast

from infinity_mm.errors import explain
from infinity_mm.storage.files import join, open_fs


@dataclass(frozen=True, slots=True)
class Files:
    """Files with one suffix; a folder is searched at any depth."""

    path: str
    """Absolute path or URL of a file, of a folder, or with `*` in it."""
    suffix: str

    def list(self) -> Iterator[tuple[str, str]]:
        """(name relative to the root, path or URL) of every file; raises `UserError` if there is none."""
        filesystem, inner = open_fs(self.path)
        root = open_fs(self._root)[1].rstrip("/")
        if "*" in inner:
            found = cast("list[str]", filesystem.glob(inner))
        elif inner.endswith(self.suffix):
            found = [inner] if filesystem.isfile(inner) else []
        else:
            found = cast("list[str]", filesystem.find(inner))
        names = sorted(path[len(root) :].lstrip("/") for path in found if path.endswith(self.suffix))
        if not names:
            raise explain(
                what=f"there is no `*{self.suffix}` file at {self.path}",
                where="sources.path (configuration)",
                fix="give a file, a folder that holds some at any depth, or a pattern with *",
            )
        for name in names:
            # What an import or export is still writing, or left half written when it was killed.
            if not any(part.endswith(".partial") for part in PurePosixPath(name).parts):
                yield name, self.url(name)

    def url(self, name: str) -> str:
        """Where the file of that name lies."""
        return join(self._root, name)

    @property
    def _root(self) -> str:
        if "*" in self.path:
            return os.path.dirname(self.path.partition("*")[0])
        return os.path.dirname(self.path) if self.path.endswith(self.suffix) else self.path.rstrip("/")
