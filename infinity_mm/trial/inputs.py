"""From what was typed to the pictures of a trial: every file has a fate, and none is opened that need not be.

files, folders, globs --expand--> Given* --a fixed shuffle--> looked at, one by one --> up to n readable pictures
                                    \\--> hidden, no image suffix, pipe, ...        \\--> unreadable, with the reason
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from infinity_mm.errors import explain
from infinity_mm.record import Emitted, Quarantined, digest
from infinity_mm.runtime.run import Run
from infinity_mm.sources.base import SourceItem
from infinity_mm.sources.file_list import FileListSource, file_problem
from infinity_mm.sources.folder import FolderSource
from infinity_mm.sources.read_pass import ReadConfig, ReadPass, read_item


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """One file that was named, or found in a folder that was."""

    path: str
    """Absolute path, with what is no UTF-8 escaped."""
    problem: str | None = None
    """Short snake_case reason why it is not opened."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The fate of every file: looked at and good, looked at and bad, not opened, not needed."""

    looked_at: list[str] = field(default_factory=list)
    """Paths that go to the read pass, good and bad."""
    pictures: dict[str, str] = field(default_factory=dict)
    """Path -> image hash of the good ones; two paths may hold the same picture."""
    unusable: list[Given] = field(default_factory=list)
    """Everything that is no readable picture, with its reason."""
    not_needed: int = 0
    """Files that were not opened because there were enough."""

    @property
    def num_given(self) -> int:
        """All files: the sum of the other figures."""
        return len(self.pictures) + len(self.unusable) + self.not_needed


def expand(arguments: Sequence[str]) -> list[Given]:
    """Every file behind the arguments, once, sorted by path.

    A folder is walked; a file that was named is opened whatever its suffix; what exists is taken as it is, before it
    is tried as a pattern. Raises `UserError` for an argument that matches nothing.
    """
    found: dict[str, Given] = {}
    for argument in arguments:
        path = os.path.expanduser(argument)
        matches = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise explain(
                what=f"there is no file or folder `{argument}`, and as a pattern it matches nothing",
                where=f"the current folder, {os.getcwd()}",
                fix="give image files, folders, or a pattern in quotes such as 'photos/**/*.jpg'",
            )
        for match in matches:
            for given in _at(os.path.abspath(match)):
                found.setdefault(given.path, given)
    return [found[path] for path in sorted(found)]


def _at(path: str) -> Iterator[Given]:
    if not os.path.isdir(path):
        problem, detail = file_problem(path)
        shown = path if problem != "name_not_utf8" else os.fsencode(path).decode("utf-8", "backslashreplace")
        yield Given(path=shown, problem=problem, detail=detail)
        return
    for item in FolderSource(name="files", root=path).items():
        yield Given(path=os.path.join(path, item.key), problem=item.problem, detail=item.detail)


def select(given: Iterable[Given], *, num_pictures: int, config: ReadConfig, run: Run) -> Selection:
    """Look at files in an order that depends on their paths alone, until there are enough different pictures.

    The order is a fixed shuffle, so that twenty pictures of a folder sorted by date are not one afternoon; the same
    call again, also with a larger number, begins with the same pictures.
    """
    source = FileListSource(name="files", path="")
    read = ReadPass(config=config)
    selection = Selection()
    not_needed = 0
    for one in sorted(given, key=lambda one: digest("trial", one.path)):
        if one.problem is not None:
            selection.unusable.append(one)
        elif len(set(selection.pictures.values())) >= num_pictures:
            not_needed += 1
        else:
            selection.looked_at.append(one.path)
            item = SourceItem(key=one.path, source=source.name, uri=one.path)
            outcome, detail = read_item(source, item, read, run)
            if isinstance(outcome, Emitted):
                selection.pictures[one.path] = outcome.sample.images[0].sha256
            else:
                error = outcome.error if isinstance(outcome, Quarantined) else detail
                reason = getattr(outcome, "reason", "unreadable_file")
                selection.unusable.append(Given(path=one.path, problem=reason, detail=error))
    return Selection(
        looked_at=sorted(selection.looked_at),
        pictures=dict(sorted(selection.pictures.items())),
        unusable=sorted(selection.unusable, key=lambda one: one.path),
        not_needed=not_needed,
    )
