"""The measurements of all samples of a source, made once and kept, or made when asked for.

source --measure, in parts, in worker processes--> folder/<key>/part-00000.arrow, ... --take--> Measured

The key is a hash of the data, the folder of its images, the tokenizer and the way text is written, and runs with
another resolution, row length or mixture share it. What had no image is measured again when a run begins: it may have
been fetched since. A part appears whole or not at all: an interrupted build goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch.utils.data import Dataset

from infinity_mm.data.conversation import ConversationSource
from infinity_mm.data.encode import RowEncoder
from infinity_mm.data.measure import Measured, measure
from infinity_mm.data.readers.stored import MISSING_IMAGE
from infinity_mm.data.workers import in_workers
from infinity_mm.record import digest

PART_SAMPLES = 8192
"""Samples of one part: the work that an interruption can cost."""
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("images", pa.list_(pa.int32())),
        ("sizes", pa.list_(pa.int32())),
        ("problem", pa.string()),
    ]
)


class Index(Protocol):
    """Measurements of one source."""

    def take(self, indices: NDArray[np.int64]) -> list[Measured]:
        """Those of the given samples, in that order."""
        ...


@final
@dataclass(frozen=True)
class LiveIndex:
    """Measures when asked: for drawn data, and for a look at data that is used once."""

    source: ConversationSource
    encoder: RowEncoder

    def take(self, indices: NDArray[np.int64]) -> list[Measured]:
        """Read and tokenise the given samples."""
        return [measure(self.source, int(i), self.encoder) for i in indices]


@final
@dataclass(frozen=True)
class StoredIndex:
    """Reads measurements from the parts, which stay on disk and are mapped into memory."""

    folder: Path
    num_samples: int
    _parts: dict[int, pa.RecordBatch] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "num_samples": self.num_samples, "_parts": {}}

    def take(self, indices: NDArray[np.int64]) -> list[Measured]:
        """Look the given samples up."""
        found: list[Any] = [None] * len(indices)
        order = np.argsort(indices, kind="stable")
        numbers, starts = np.unique(indices[order] // PART_SAMPLES, return_index=True)
        for number, places in zip(numbers, np.split(order, starts[1:])):
            rows = self._part(int(number)).take(pa.array(indices[places] % PART_SAMPLES))
            columns = [column.to_pylist() for column in rows.columns]
            for place, (id_, domain, tokens, images, sizes, problem) in zip(places, zip(*columns)):
                found[place] = Measured(
                    id=id_,
                    domain=domain,
                    tokens=tuple(tokens),
                    images=tuple(images),
                    image_sizes=tuple(zip(sizes[::2], sizes[1::2])),
                    problem=problem,
                )
        return found

    def domains(self) -> list[str]:
        """The domain of every sample."""
        parts = -(-self.num_samples // PART_SAMPLES)
        return [domain for n in range(parts) for domain in self._part(n).column("domain").to_pylist()]

    def lacks_images(self, number: int) -> bool:
        """Whether a part has samples whose image was not there."""
        found: Any = pc.any(pc.starts_with(self._part(number).column("problem"), MISSING_IMAGE))  # pyright: ignore
        return bool(found.as_py())

    def _part(self, number: int) -> pa.RecordBatch:
        if number not in self._parts:
            with pa.memory_map(str(_part_file(self.folder, number))) as file:
                self._parts[number] = pa.ipc.open_file(file).get_batch(0)
        return self._parts[number]


def build_index(
    source: ConversationSource, encoder: RowEncoder, folder: Path, *, num_workers: int = 0
) -> StoredIndex:
    """The index of a source below `folder`; what is already there is not made again."""
    # The same rows may stand beside other images.
    images = getattr(source, "image_folder", None)
    place = "" if images is None else str(Path(images).resolve())
    key = digest("index 2", source.fingerprint, place, source.turns, encoder.text_fingerprint)
    own = folder / key[:32]
    own.mkdir(parents=True, exist_ok=True)
    found = StoredIndex(own, len(source))
    num_parts = -(-len(source) // PART_SAMPLES)
    unfinished = [n for n in range(num_parts) if not _part_file(own, n).is_file() or found.lacks_images(n)]
    # A process takes seconds to start, as long as this one takes for a part.
    workers = min(num_workers, len(unfinished)) if len(unfinished) > 1 else 0
    for _ in in_workers(_Parts(source, encoder, own), iter(unfinished), workers):
        pass
    return StoredIndex(own, len(source))


class _Parts(Dataset[int]):
    """Item n writes part n, or what of it had no image before, and is its number of samples."""

    def __init__(self, source: ConversationSource, encoder: RowEncoder, folder: Path) -> None:
        self.source, self.encoder, self.folder = source, encoder, folder

    def __getitem__(self, number: int) -> int:
        first = number * PART_SAMPLES
        indices = range(first, min(first + PART_SAMPLES, len(self.source)))
        known: list[Measured | None] = [None] * len(indices)
        if _part_file(self.folder, number).is_file():
            known = [*StoredIndex(self.folder, len(self.source)).take(np.array(indices))]
        samples = [
            measure(self.source, i, self.encoder) if old is None or _had_no_image(old) else old
            for i, old in zip(indices, known)
        ]
        if samples != known:
            write_part(self.folder, number, samples)
        return len(indices)


def _had_no_image(sample: Measured) -> bool:
    return sample.problem is not None and sample.problem.startswith(MISSING_IMAGE)


def write_part(folder: Path, number: int, samples: Sequence[Measured]) -> None:
    """Write one part, whole or not at all."""
    file = _part_file(folder, number)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as stream, pa.ipc.new_file(stream, _SCHEMA) as writer:
        writer.write_batch(_batch(samples))
    os.replace(partial, file)


def _batch(samples: Sequence[Measured]) -> pa.RecordBatch:
    columns = [
        [sample.id for sample in samples],
        [sample.domain for sample in samples],
        [sample.tokens for sample in samples],
        [sample.images for sample in samples],
        [[side for size in sample.image_sizes for side in size] for sample in samples],
        [sample.problem for sample in samples],
    ]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, _SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.arrow"
