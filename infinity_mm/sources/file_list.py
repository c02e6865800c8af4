"""Files that were named one by one, wherever they lie.

list of paths (JSON lines) --sorted, looked at--> regular files --> items
                                        \\--> missing, folder, pipe --> items with a problem
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from infinity_mm.errors import explain
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem, read_uri


@final
@dataclass(frozen=True, kw_only=True)
class FileListSource(FromTheWorld):
    """The files that a text file names: one JSON string with an absolute path on each line."""

    name: str
    path: str
    """The text file."""
    licence: str = "unknown"

    def items(self) -> Iterator[SourceItem]:
        """One item per path, sorted; a path that is there twice is one item. The suffix does not matter."""
        for file in sorted(set(read_list(self.path))):
            problem, detail = file_problem(file)
            yield SourceItem(
                key=file,
                source=self.name,
                uri=None if problem else file,
                problem=problem,
                detail=detail,
            )

    def read(self, item: SourceItem) -> Content:
        """The file's bytes."""
        assert item.uri is not None
        return Content(pictures=(Picture(data=read_uri(item.uri), uri=item.uri),), licence=self.licence)


def read_list(path: str) -> list[str]:
    """The paths in a list; raises `UserError` for a missing file and for a line that is no absolute path."""
    if not os.path.isfile(path):
        raise explain(
            what=f"there is no list of files {path}",
            where="sources.path (configuration)",
            fix='write one JSON string with an absolute path per line, as in "/data/a.jpg"',
        )
    files = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            file = json.loads(line)
        except ValueError:
            file = None
        if not isinstance(file, str) or not os.path.isabs(file):
            raise explain(
                what=f"line {number} is no JSON string with an absolute path: {line[:80]}",
                where=path,
                fix='write it as "/data/a.jpg", with the quotation marks',
            )
        files.append(file)
    return files


def write_list(path: str | Path, files: list[str]) -> None:
    """The inverse of `read_list`; JSON, because a file name may hold a line end."""
    Path(path).write_text("".join(json.dumps(file) + "\n" for file in files), encoding="utf-8")


def file_problem(path: str) -> tuple[str | None, str]:
    """Why a named path cannot be opened (reason, detail), or (None, ""). Nothing is opened here."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "name_not_utf8", "rename the file: its name cannot be written to JSON"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return ("broken_symlink" if os.path.islink(path) else "missing_image"), ""
    except OSError as error:
        return "unreadable_file", f"{type(error).__name__}: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is_a_folder", ""
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        return "not_a_regular_file", ""
    return None, ""
