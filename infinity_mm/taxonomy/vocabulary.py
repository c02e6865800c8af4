"""Tag vocabularies: one tag per line, `#` starts a comment."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from infinity_mm.errors import explain

_SHIPPED = ("windtunnel", "general")


def load_vocabulary(name: str) -> tuple[str, ...]:
    """Read a shipped vocabulary (`windtunnel`, `general`) or the text file at a path."""
    file = Path(__file__).parent / "vocabularies" / f"{name}.txt" if name in _SHIPPED else Path(name)
    if not file.is_file():
        raise explain(
            what=f"there is no tag vocabulary `{name}`",
            where="tagger.vocabulary (configuration)",
            fix=f"use one of {', '.join(_SHIPPED)}, or the path of a text file with one tag per line",
        )
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    tags = tuple(line for line in lines if line)
    doubles = [tag for tag, count in Counter(tags).items() if count > 1]
    if doubles or not tags:
        raise explain(
            what=f"the tag `{doubles[0]}` is there twice" if doubles else "the vocabulary is empty",
            where=str(file),
            fix="one line per tag, each tag once",
        )
    return tags
