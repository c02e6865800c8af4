"""Pass `dedup` (P3): conversations that another one already holds, found over the whole set.

all conversations in id order --image hashes within a radius--> neighbours
all its pairs in one earlier neighbour? --yes--> merged into that one
                                        --no---> goes on
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np

from infinity_mm.data.regions import text_of
from infinity_mm.dedup.images import near_pairs
from infinity_mm.dedup.text import normalise, same_question
from infinity_mm.errors import explain
from infinity_mm.record import Emitted, Fate, Sample, digest, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """What counts as the same conversation."""

    radius_bits: int = 4
    """Most bits in which the perceptual hashes of two images of the same picture differ, of 64."""
    count_questions: bool = False
    """Label every pair with how many times its question has been asked over the whole set (pass `repeats`). A limit,
    `policy.max_repeats`, counts them too."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius_bits < 32:
            raise explain(
                what=f"radius_bits={self.radius_bits} is outside 0 to 31",
                where="DedupConfig (YAML section `dedup`)",
                fix="set dedup.radius_bits to 0 for equal hashes only, or up to about 10",
            )


@final
@dataclass(frozen=True, kw_only=True)
class DedupPass:
    """P3: one answer to one question about one picture stays, whatever files the picture came in."""

    config: DedupConfig = field(default_factory=DedupConfig)
    after: str = "journeys"
    """The pass whose samples are read."""
    name: str = "dedup"

    def fingerprint(self) -> str:
        """What decides who is merged; whether questions are counted is the next pass's business."""
        return digest(self.name, self.after, str(self.config.radius_bits))

    def units(self, run: Run) -> Sequence[Unit]:
        """One unit per unit before; who is merged into whom is decided here, over all of them."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        home: dict[str, str] = {}
        samples: list[Sample] = []
        for unit in manifest.units:
            found = run.unit_samples(self.after, unit)
            home |= {sample.id: unit for sample in found}
            samples += found
        merges: dict[str, dict[str, str]] = {unit: {} for unit in manifest.units}
        for id_, target in find_repeats(samples, self.config).items():
            merges[home[id_]][id_] = target
        return [Unit(id=unit, payload=merges[unit]) for unit in manifest.units]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _DedupWorker(self, run)


@final
class _DedupWorker:
    def __init__(self, pass_: DedupPass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        """Write down what was decided."""
        merges: Mapping[str, str] = unit.payload
        samples = self._run.unit_samples(self._pass.after, unit.id)
        kept = [sample for sample in samples if sample.id not in merges]
        fates = settle(self._pass.name, [sample.id for sample in kept], [Emitted(sample=s) for s in kept])
        # Not through `settle`: the target may lie in another unit. The ledger checks targets over the whole pass.
        fates += [
            Fate(id=id_, stage=self._pass.name, fate="merged", into=(into,)) for id_, into in merges.items()
        ]
        return UnitResult(
            input_ids=[sample.id for sample in samples],
            samples=kept,
            fates=fates,
            metrics={"conversations": len(samples), "duplicates": len(merges)},
        )


def find_repeats(samples: Iterable[Sample], config: DedupConfig) -> dict[str, str]:
    """Id -> the earlier conversation that it is merged into, which itself stays; decided in id order."""
    ordered = sorted(samples, key=lambda sample: sample.id)
    images = _image_groups(ordered)
    earlier = _earlier_neighbours(list(images), config.radius_bits)
    group_of = {sample.id: number for number, group in enumerate(images.values()) for sample in group}
    pairs = {sample.id: pairs_of(sample) for sample in ordered}
    stays: dict[int, list[Sample]] = defaultdict(list)
    repeats: dict[str, str] = {}
    for sample in ordered:
        group = group_of[sample.id]
        candidates = sorted((s for near in earlier[group] for s in stays[near]), key=lambda s: s.id)
        target = next((c.id for c in candidates if _holds(pairs[c.id], pairs[sample.id])), None)
        if target is None:
            stays[group].append(sample)
        else:
            repeats[sample.id] = target
    return repeats


def pairs_of(sample: Sample) -> Counter[tuple[str, str]]:
    """The (user text, normalised answer) pairs of a conversation."""
    texts = [text_of(turn.content) for turn in sample.turns if turn.role != "system"]
    return Counter((user, normalise(answer)) for user, answer in zip(texts[0::2], texts[1::2], strict=True))


def _holds(earlier: Mapping[tuple[str, str], int], later: Mapping[tuple[str, str], int]) -> bool:
    """Whether every pair of the later conversation is in the earlier one."""
    return bool(later) and all(
        any(answer == said and same_question(question, asked) for asked, said in earlier)
        for question, answer in later
    )


def _image_groups(samples: Sequence[Sample]) -> dict[tuple[str, ...], list[Sample]]:
    """Samples by the hashes of their images: perceptual where known, else of the bytes."""
    groups: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[tuple(image.phash or image.sha256 for image in sample.images)].append(sample)
    return groups


def _earlier_neighbours(keys: Sequence[tuple[str, ...]], radius_bits: int) -> list[list[int]]:
    """For every group of images, the groups that show the same: itself, and those within the radius.

    Only single images are compared by distance; documents and image lists must be equal.
    """
    near: list[list[int]] = [[number] for number in range(len(keys))]
    single = [number for number, key in enumerate(keys) if len(key) == 1 and len(key[0]) == 16]
    found = (
        near_pairs([keys[number][0] for number in single], radius_bits) if single else np.empty((0, 2), int)
    )
    for left, right in found:
        near[single[left]].append(single[right])
        near[single[right]].append(single[left])
    return near
