"""Pass `tag`: image tags with scores, each image scored once and journaled; tags that came with an image count.

samples of `unique` --journal?--> scores --top_k, min_score--> sample with tags, merged with those it came with
                      \\--> decode --batch--> tagger --journal--/
                       \\-> a VLM, through the journal -------/
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from infinity_mm.config import to_plain
from infinity_mm.engines.allowance import with_allowance
from infinity_mm.engines.journaled import Journaled
from infinity_mm.engines.simulate import SimulatedSpec
from infinity_mm.record import Dropped, Emitted, Outcome, Quarantined, Sample, canonical_json, digest, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.taxonomy.calibration import Calibration
from infinity_mm.taxonomy.clip_tagger import weights_on_disk
from infinity_mm.taxonomy.tagger import (
    Tagger,
    TaggerConfig,
    choose_tags,
    needs_tags,
    open_tagger,
    with_tags,
)
from infinity_mm.taxonomy.vlm_tagger import VlmTagger
from infinity_mm.taxonomy.vocabulary import load_vocabulary
from infinity_mm.vision.images import BadImage, decode_image

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run
    from infinity_mm.storage.journal import Journal

TAGGER_FILE = "tagger.json"
"""Committed beside the tags: {"fingerprint"} of the tagger. What a VLM says has its own with every call."""


@final
@dataclass(frozen=True, kw_only=True)
class TagPass:
    """P1, first half: writes `tags`."""

    config: TaggerConfig = field(default_factory=TaggerConfig)
    journal: Literal["record", "replay", "simulate"] = "record"
    """vlm: as for the journeys; `replay` asks no model, `simulate` makes replies up."""
    after: str = "unique"
    """The pass whose samples are read."""
    name: str = "tag"

    def fingerprint(self) -> str:
        """Configuration, vocabulary, calibration and, where they lie on this disk, weights."""
        calibration = self.config.calibration
        return digest(
            self.name,
            self.after,
            canonical_json(to_plain(self.config)),
            canonical_json(list(load_vocabulary(self.config.vocabulary))),
            weights_on_disk(self.config.model),
            "" if calibration is None else Calibration.load(calibration).fingerprint,
            "simulated" if self.config.engine is not None and self.journal == "simulate" else "",
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
        journal = run.journal(self.name)
        if self.config.engine is None:
            tagger = open_tagger(self.config)
            yield TagWorker(pass_=self, run=run, tagger=tagger, journal=journal)
            return
        spec = SimulatedSpec() if self.journal == "simulate" else self.config.engine.spec()
        mode = "replay" if self.journal == "replay" else "record"
        async with spec.open(run.images) as engine:
            if run.link is not None and self.journal != "simulate":  # which spends nothing
                engine = with_allowance(engine, run.link.purse)
            vlm = VlmTagger(self.config, Journaled(engine, journal, mode=mode))
            yield TagWorker(pass_=self, run=run, tagger=vlm, journal=journal)


@final
class TagWorker:
    """One tagger and one journal for all units of a worker."""

    def __init__(self, *, pass_: TagPass, run: Run, tagger: Tagger | VlmTagger, journal: Journal) -> None:
        self._pass, self._run, self._tagger, self._journal = pass_, run, tagger, journal
        self._model_free = asyncio.Lock()

    async def run(self, unit: Unit) -> UnitResult:
        """Tag the images that need it; tags that came with the others stand."""
        samples = self._run.unit_samples(self._pass.after, unit.id)
        asked = [sample for sample in samples if needs_tags(sample, self._pass.config)]
        committed: dict[str, bytes] = {}
        if isinstance(self._tagger, VlmTagger):
            found, counts = await self._tagger.outcomes(asked)
        else:
            found, counts = await self._score(self._tagger, asked)
            committed[TAGGER_FILE] = canonical_json({"fingerprint": self._tagger.fingerprint}).encode()
        by_id = dict(zip((sample.id for sample in asked), found, strict=True))
        outcomes = [by_id.get(sample.id) or Emitted(sample=sample) for sample in samples]
        ids = [sample.id for sample in samples]
        tagged = [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]
        tags = [tag for sample in tagged for tag in sample.tags or ()]
        return UnitResult(
            input_ids=ids,
            samples=tagged,
            fates=settle(self._pass.name, ids, outcomes),
            dropped=[
                {"id": o.id, "stage": o.stage, "reason": o.reason, "detail": o.detail, "sample": o.sample}
                for o in outcomes
                if isinstance(o, Dropped)
            ],
            quarantined=[
                {"id": o.id, "stage": o.stage, "reason": o.reason, "error": o.error, "sample": o.sample}
                for o in outcomes
                if isinstance(o, Quarantined)
            ],
            metrics={
                "images": len(samples),
                "images_tagged_by_source": len(samples) - len(asked),
                "images_without_tags": sum(not sample.tags for sample in tagged),
                "tags": len(tags),
                "tags_not_calibrated": sum(not tag.calibrated for tag in tags),
            }
            | counts,
            files=committed,
        )

    async def _score(
        self, tagger: Tagger, samples: Sequence[Sample]
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Score what the journal does not know, in batches; then choose tags."""
        keys = {sample.id: digest("tags", sample.images[0].sha256, tagger.fingerprint) for sample in samples}
        unread: dict[str, BadImage] = {}
        known = {id_: self._journal.get(key) for id_, key in keys.items()}
        unknown = [sample for sample in samples if known[sample.id] is None]
        for batch in _batches(unknown, self._pass.config.batch_images):
            pictures = await asyncio.to_thread(self._decode, batch, unread)
            if pictures:
                async with self._model_free:
                    rows = await asyncio.to_thread(tagger.scores, list(pictures.values()))
                for id_, scores in zip(pictures, rows, strict=True):
                    known[id_] = self._journal.put(keys[id_], {"scores": scores})
        await asyncio.to_thread(self._journal.sync)
        outcomes = [self._outcome(sample, known[sample.id], unread.get(sample.id)) for sample in samples]
        return outcomes, {
            "images_scored": len(unknown) - len(unread),
            "images_from_journal": len(samples) - len(unknown),
        }

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
        config = self._pass.config
        if value is None:
            assert bad is not None
            return Dropped(
                id=sample.id, stage=self._pass.name, reason=bad.reason, sample=sample, detail=bad.detail
            )
        return Emitted(sample=with_tags(sample, choose_tags(value["scores"], config), config))


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
