"""What a published data set is, counted from the very files that are uploaded, not from what the run meant to do.

Parquet files --row by row--> Facts (rows, licences, models, prompts, a few samples)
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

NUM_SAMPLES = 8
"""Pictures in the strip."""


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One row that is shown on the card."""

    image: bytes
    """The first image, encoded."""
    question: str
    answer: str


@dataclass(kw_only=True)
class Facts:
    """Counts over all rows."""

    rows: int = 0
    pairs: int = 0
    """Question-answer pairs."""
    rewritten: int = 0
    """Of those, with an answer that was rewritten."""
    licences: dict[str, str] = field(default_factory=dict)
    """Image hash -> licence."""
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(source, licence) -> distinct images."""
    types: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(stage, model) -> calls that are part of a published pair."""
    prompts: set[str] = field(default_factory=set)
    """`set/name@hash`."""
    samples: list[SampleRow] = field(default_factory=list)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Count rows of {licence, source, provenance}."""
        for row in rows:
            self.rows += 1
            made = json.loads(row["provenance"])
            for image in made["images"]:
                if image["sha256"] not in self.licences:
                    self.licences[image["sha256"]] = image["licence"]
                    self.sources[image["source"], image["licence"]] += 1
            for pair in made["pairs"]:
                self.pairs += 1
                self.rewritten += bool(pair["rewritten"])
                self.types[pair["type"] or "none"] += 1
                self.styles[pair["style"] or "none"] += 1
                for call in pair["calls"]:
                    self.calls[call["stage"], call["model"]] += 1
                    self.prompts.add(call["prompt"])

    @property
    def images(self) -> int:
        """Distinct images."""
        return len(self.licences)


def facts_of(files: Iterator[bytes], total_rows: int) -> Facts:
    """Count all files, one in memory at a time; samples are spread evenly over `total_rows`."""
    facts = Facts()
    num = min(NUM_SAMPLES, total_rows)
    wanted = {index * total_rows // num for index in range(num)}
    for data in files:
        parquet = pq.ParquetFile(io.BytesIO(data))
        for group in range(parquet.num_row_groups):
            first = facts.rows
            facts.add(parquet.read_row_group(group, columns=["provenance"]).to_pylist())
            here = sorted(index - first for index in wanted if first <= index < facts.rows)
            if here:
                table = parquet.read_row_group(group, columns=["images", "messages"])
                facts.samples += [_sample(row) for row in table.take(here).to_pylist()]
    return facts


def _sample(row: dict[str, Any]) -> SampleRow:
    said: dict[str, str] = {}
    for message in row["messages"]:
        text = " ".join(part["text"] for part in message["content"] if part["text"])
        said.setdefault(message["role"], text)
    images = row["images"] or []
    return SampleRow(
        image=images[0]["bytes"] if images else b"",
        question=said.get("user", ""),
        answer=said.get("assistant", ""),
    )
