"""The list of samples that are not trained on, because something is wrong with them.

quarantine.jsonl: one {"source", "id", "reason"} a line --read--> Quarantine --every run that is given it--> left out
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.record import digest


@dataclass(frozen=True, slots=True)
class Listed:
    """One line."""

    source: str
    """Name of the source in the mixture."""
    id: str
    """The sample's own id; all samples of the source with this id are meant."""
    reason: str
    """For people."""


class Quarantine:
    """What is listed, as it was when the run began."""

    def __init__(self, listed: Iterable[Listed] = ()) -> None:
        self.reasons = {(entry.source, entry.id): entry.reason for entry in listed}

    @property
    def fingerprint(self) -> str:
        """Changes with the samples listed, not with their reasons or order."""
        return digest(*(f"{len(source)}/{source}/{id_}" for source, id_ in sorted(self.reasons)))


def read_quarantine(path: Path) -> list[Listed]:
    """The list in a file; raises UserError for a line that is none."""
    if not path.is_file():
        raise explain(
            what=f"there is no file {path}", where="quarantine (configuration)", fix="correct the path"
        )
    listed: list[Listed] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            listed.append(Listed(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise explain(
                what=f"not an entry of a quarantine list: {error}",
                where=f"{path}, line {number}",
                fix='write {"source": "...", "id": "...", "reason": "..."}',
            ) from error
    return listed


def append_quarantine(path: Path, listed: Iterable[Listed]) -> None:
    """Add to a list, which may not exist yet; what is there already is not written again."""
    known = {(entry.source, entry.id) for entry in (read_quarantine(path) if path.is_file() else ())}
    with path.open("a", encoding="utf-8") as file:
        for entry in listed:
            if (entry.source, entry.id) not in known:
                known.add((entry.source, entry.id))
                line = {"source": entry.source, "id": entry.id, "reason": entry.reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
