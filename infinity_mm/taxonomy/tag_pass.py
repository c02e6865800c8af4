"""Pass `tag`: image tags with scores, each image scored once and journaled; tags that came with an image stand.

samples of `unique` --journal?--> scores --top_k, min_score--> sample with tags
                      \\--> decode --batch--> tagger --journal--/
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

from infinity_mm.config import to_plain
from infinity_mm.record import Dropped, Emitted, Outcome, Sample, canonical_json, digest, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.taxonomy.tagger import (
    ClipTagger,
    NoTagger,
    Tagger,
    TaggerConfig,
    choose_tags,
    weights_on_disk,
)
from infinity_mm.taxonomy.vocabulary import load_vocabulary
from infinity_mm.vision.images import BadImage, decode_image

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run
    from infinity_mm.storage.journal import Journal


@final
@dataclass(frozen=True, kw_only=True)
class TagPass:
    """P1, first half: writes `tags`."""

    config: TaggerConfig = field(default_factory=TaggerConfig)
    after: str = "unique"
    """The pass whose samples are read."""
    name: str = "tag"

    def fingerprint(self) -> str:
        """Configuration, vocabulary and, where they lie on this disk, weights."""
        return digest(
            self.name,
            self.after,
            canonical_json(to_plain(self.config)),
            canonical_json(list(load_vocabulary(self.config.vocabulary))),
            weights_on_disk(self.config.model),
        )

    def units(self, run: Run) -> Sequence[Unit]:
        """One unit per unit before."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        return [Unit(id=unit, payload=None) for unit in manifest.units]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Load the tagger."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        tagger = NoTagger() if self.config.model == "none" else ClipTagger(self.config)
        yield TagWorker(pass_=self, run=run, tagger=tagger, journal=run.journal(self.name))


@final
class TagWorker:
    """One tagger and one journal for all units of a worker."""

    def __init__(self, *, pass_: TagPass, run: Run, tagger: Tagger, journal: Journal) -> None:
        self._pass, self._run, self._tagger, self._journal = pass_, run, tagger, journal
        self._model_free = asyncio.Lock()

    async def run(self, unit: Unit) -> UnitResult:
        """Score what the journal does not know, in batches; then choose tags."""
        samples = self._run.unit_samples(self._pass.after, unit.id)
        unread: dict[str, BadImage] = {}
        untagged = [sample for sample in samples if sample.tags is None]
        known = {sample.id: self._journal.get(self._key(sample)) for sample in untagged}
        unknown = [sample for sample in untagged if known[sample.id] is None]
        for batch in _batches(unknown, self._pass.config.batch_images):
            pictures = await asyncio.to_thread(self._decode, batch, unread)
            if pictures:
                async with self._model_free:
                    rows = await asyncio.to_thread(self._tagger.scores, list(pictures.values()))
                for sample, scores in zip((s for s in batch if s.id in pictures), rows, strict=True):
                    known[sample.id] = self._journal.put(self._key(sample), {"scores": scores})
        await asyncio.to_thread(self._journal.sync)
        outcomes = [self._outcome(sample, known.get(sample.id), unread.get(sample.id)) for sample in samples]
        ids = [sample.id for sample in samples]
        tagged = [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]
        return UnitResult(
            input_ids=ids,
            samples=tagged,
            fates=settle(self._pass.name, ids, outcomes),
            dropped=[
                {
                    "id": o.id,
                    "stage": o.stage,
                    "reason": o.reason,
                    "detail": unread[o.id].detail,
                    "sample": o.sample,
                }
                for o in outcomes
                if isinstance(o, Dropped)
            ],
            metrics={
                "images": len(samples),
                "images_scored": len(unknown) - len(unread),
                "images_from_journal": len(untagged) - len(unknown),
                "images_without_tags": sum(1 for sample in tagged if not sample.tags),
                "tags": sum(len(sample.tags or ()) for sample in tagged),
            },
        )

    def _key(self, sample: Sample) -> str:
        return digest("tags", sample.images[0].sha256, self._tagger.fingerprint)

    def _decode(self, samples: Sequence[Sample], unread: dict[str, BadImage]) -> dict[str, Any]:
        pictures = {}
        for sample in samples:
            try:
                image = sample.images[0]
                # `read` has decoded it once, so its own limit on pixels was met.
                pixels = image.width * image.height
                pictures[sample.id] = decode_image(self._run.images.read(image), max_pixels=pixels)
            except BadImage as bad:  # the file was removed or replaced since pass `read`
                unread[sample.id] = bad
        return pictures

    def _outcome(self, sample: Sample, value: dict[str, Any] | None, bad: BadImage | None) -> Outcome:
        if sample.tags is not None:
            return Emitted(sample=sample)
        if value is None:
            assert bad is not None
            return Dropped(id=sample.id, stage=self._pass.name, reason=bad.reason, sample=sample)
        return Emitted(sample=replace(sample, tags=choose_tags(value["scores"], self._pass.config)))


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
