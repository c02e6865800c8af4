"""JSONL files that people write: rows with their place, and errors that name it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infinity_mm.errors import UserError, explain


def read_rows(file: Path, *, form: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every line that is not empty; `form` shows what a row looks like."""
    if not file.is_file():
        raise explain(
            what=f"there is no file {file}", where=str(file), fix=f"give a JSONL file of rows {form}"
        )
    with open(file, encoding="utf-8", newline="\n") as lines:  # U+2028 does not end a line of JSON
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise bad_row(f"{error}", where=where, form=form) from error
            if not isinstance(row, dict):
                raise bad_row("no object", where=where, form=form)
            yield where, row


def strings(row: Mapping[str, Any], key: str, *, where: str, form: str) -> tuple[str, ...]:
    """A list of strings in a row."""
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise bad_row(f"`{key}` is no list of strings", where=where, form=form)
    return tuple(value)


def bad_row(problem: str, *, where: str, form: str) -> UserError:
    """The error for a row that is not as it should be."""
    return explain(what=f"a row cannot be read: {problem}", where=where, fix=f"write {form}")
