"""Pass `read`: list the sources, open every image once, and say of each item what became of it.

sources --list--> units of items --read, decode, measure, hash--> one sample per readable image
                                                \\--> dropped with a reason; raised: quarantined
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from infinity_mm.config import to_plain
from infinity_mm.dedup.images import phash
from infinity_mm.errors import UserError, explain
from infinity_mm.record import (
    Dropped,
    Emitted,
    ImageRef,
    Outcome,
    Quarantined,
    Sample,
    canonical_json,
    digest,
    settle,
)
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.sources.base import Picture, Source, SourceItem
from infinity_mm.sources.config import SourceConfig, open_sources
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.vision.images import MAX_PIXELS, BadImage, decode_image

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

ITEMS_FILE = "items.jsonl"
"""Committed with each unit: id, source and key of every item, in order of listing."""
TRUTH_FILE = "ground_truth_for_evaluation_only.jsonl"
"""Committed beside the samples of drawn images: image hash -> scene. No pass of synthesis reads it."""


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """Which images are taken in."""

    sources: tuple[SourceConfig, ...]
    """Where they come from."""
    images_per_unit: int = 256
    """Items in one work shard."""
    min_side_px: int = 32
    """Below it there is nothing to ask about: two ViT patches a side."""
    max_aspect: float = 16.0
    """Longest to shortest side; beyond it the best slice grid shows slivers, and some VLM processors refuse."""
    max_pixels: int = MAX_PIXELS
    """Width times height that is decoded at all, read from the header."""
    sample: int | None = None
    """Take so many items of all sources together, chosen by a fixed shuffle of their ids; null takes all."""

    def __post_init__(self) -> None:
        if self.images_per_unit < 1 or self.min_side_px < 1 or self.max_aspect < 1 or self.max_pixels < 1:
            raise explain(
                what="images_per_unit, min_side_px, max_aspect and max_pixels must be 1 or more",
                where="read (configuration)",
                fix="leave them out to get the defaults",
            )
        if self.sample is not None and self.sample < 1:
            raise explain(
                what=f"a sample of {self.sample} items",
                where="read.sample (configuration)",
                fix="set it to 1 or more, or leave it out to take all",
            )

    def items(self) -> list[SourceItem]:
        """What the sources list now, in the order of sources and keys."""
        items = [item for source in open_sources(self.sources).values() for item in source.items()]
        if self.sample is None or len(items) <= self.sample:
            return items
        chosen = set(sorted(digest("sample", item.id) for item in items)[: self.sample])
        return [item for item in items if digest("sample", item.id) in chosen]


@final
@dataclass(frozen=True, kw_only=True)
class ReadPass:
    """P0: from sources to samples with a hash, a size and a perceptual hash."""

    config: ReadConfig
    name: str = "read"

    def fingerprint(self) -> str:
        """Configuration and what the sources list now: a folder that has changed is read again."""
        listing = hashlib.sha256()
        for item in self.config.items():
            listing.update(canonical_json(item.to_plain()).encode())
        return digest(self.name, canonical_json(to_plain(self.config)), listing.hexdigest())

    def units(self, run: Run) -> Sequence[Unit]:
        """Items in the order of sources and keys, cut into equal parts."""
        items = [item.to_plain() for item in self.config.items()]
        step = self.config.images_per_unit
        return [
            Unit(id=f"{number:05d}", payload=items[start : start + step])
            for number, start in enumerate(range(0, len(items), step))
        ]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _ReadWorker(self, run)


@final
class _ReadWorker:
    def __init__(self, pass_: ReadPass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        """Decode in a thread, so that a worker with several units open keeps them all moving."""
        return await asyncio.to_thread(self._work, [SourceItem.from_plain(plain) for plain in unit.payload])

    def _work(self, items: Sequence[SourceItem]) -> UnitResult:
        outcomes: list[Outcome] = []
        rows: list[dict[str, Any]] = []
        truths: dict[str, Mapping[str, Any]] = {}
        # Opened for each unit: units are worked in threads of their own, and readers keep their place in a file.
        sources = open_sources(self._pass.config.sources)
        for item, (outcome, detail) in zip(items, self._read(sources, items), strict=True):
            outcomes.append(outcome)
            if isinstance(outcome, Emitted):
                truth = sources[item.source].truth(item)
                if truth is not None:
                    truths[outcome.sample.images[0].sha256] = truth
            else:
                rows.append(_row(outcome, item, detail))
        reasons = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Dropped))
        ids = [item.id for item in items]
        return UnitResult(
            input_ids=ids,
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=settle(self._pass.name, ids, outcomes),
            dropped=[row for row in rows if "error" not in row],
            quarantined=[row for row in rows if "error" in row],
            metrics={"items": len(items)} | {f"dropped_{reason}": n for reason, n in sorted(reasons.items())},
            files=_files(items, truths),
        )

    def _read(
        self, sources: Mapping[str, Source], items: Sequence[SourceItem]
    ) -> Iterator[tuple[Outcome, str]]:
        """Outcomes in the order of items; sources whose reading is waiting are read by several threads."""
        threads = min(sources[name].threads for name in {item.source for item in items})
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(
                lambda item: read_item(sources[item.source], item, self._pass, self._run), items
            )


def read_item(source: Source, item: SourceItem, pass_: ReadPass, run: Run) -> tuple[Outcome, str]:
    """The outcome of one item, with a detail for a person; nothing that one image does stops the others."""
    if item.problem is not None:
        return Dropped(id=item.id, stage=pass_.name, reason=item.problem), item.detail
    try:
        return Emitted(sample=_sample(source, item, pass_.config, run)), ""
    except (BadImage, BadRow) as bad:
        return Dropped(id=item.id, stage=pass_.name, reason=bad.reason), bad.detail
    except UserError:
        raise  # a package that is missing, a column that is not there: the same for every item
    except Exception as error:
        kind = type(error).__name__
        return Quarantined(id=item.id, stage=pass_.name, reason=kind, error=f"{kind}: {error}"), ""


def _sample(source: Source, item: SourceItem, config: ReadConfig, run: Run) -> Sample:
    content = source.read(item)
    origin = item.source if content.origin is None else f"{item.source}/{content.origin}"
    # All are looked at before the first is stored: a sample with one bad page leaves nothing behind.
    looked = [(picture, *_look(picture, config)) for picture in content.pictures]
    images = tuple(
        ImageRef(
            sha256=hashlib.sha256(picture.data).hexdigest(),
            uri=picture.uri if picture.uri is not None else run.store_image(picture.data),
            width=width,
            height=height,
            source=origin,
            licence=content.licence,
            page=picture.page,
            phash=hashed,
        )
        for picture, (width, height), hashed in looked
    )
    return Sample(id=item.id, images=images, turns=content.turns, tags=content.tags)


def _look(picture: Picture, config: ReadConfig) -> tuple[tuple[int, int], str]:
    """Size and perceptual hash; raises `BadImage` for what is not taken in."""
    decoded = decode_image(picture.data, max_pixels=config.max_pixels)
    width, height = decoded.size
    if max(width, height) > config.max_aspect * min(width, height):
        raise BadImage("extreme_aspect", f"{width}x{height} px, limit {config.max_aspect:g} to 1")
    if min(width, height) < config.min_side_px:
        raise BadImage("too_small", f"{width}x{height} px, each side needs {config.min_side_px}")
    return (width, height), phash(decoded)


def _row(outcome: Outcome, item: SourceItem, detail: str) -> dict[str, Any]:
    """What a person needs to find the file again."""
    assert isinstance(outcome, (Dropped, Quarantined))
    row: dict[str, Any] = {
        "id": outcome.id,
        "stage": outcome.stage,
        "reason": outcome.reason,
        "source": item.source,
        "key": item.key,
        "uri": item.uri,
        "detail": detail,
        "sample": None,
    }
    return row | {"error": outcome.error} if isinstance(outcome, Quarantined) else row


def _files(items: Sequence[SourceItem], truths: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    listed = [{"id": item.id, "source": item.source, "key": item.key} for item in items]
    files = {ITEMS_FILE: _jsonl(listed)}
    if truths:
        files[TRUTH_FILE] = _jsonl([{"image": sha256, "scene": truths[sha256]} for sha256 in sorted(truths)])
    return files


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(canonical_json(row) + "\n" for row in rows).encode()
