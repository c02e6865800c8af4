"""Pass `dedup` (P3): conversations that another one already holds, found over the whole set.

all conversations --numbers alone--> those that share a pair with one about the same picture --texts, in id order-->
all its pairs in one earlier neighbour? --yes--> merged into that one
                                        --no---> goes on
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, final

import numpy as np

from infinity_mm.data.regions import text_of
from infinity_mm.dedup.candidates import may_repeat, pair_key
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
        """One unit per unit before; who is merged into whom is decided here, over all of them.

        Memory as in `may_repeat`, plus the questions of conversations that share a pair with another one.
        """
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        parts = [partial(run.unit_samples, self.after, unit) for unit in manifest.units]
        merges = find_repeats(parts, self.config)
        return [Unit(id=unit, payload=merged) for unit, merged in zip(manifest.units, merges, strict=True)]

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


@final
@dataclass(frozen=True, slots=True)
class _Talk:
    """What is held of a conversation that may be a repeat or have one."""

    id: str
    part: int
    images: tuple[str, ...]
    pairs: tuple[tuple[str, bytes], ...]
    """(question, hash of the normalised answer)."""


def find_repeats(
    parts: Sequence[Callable[[], Iterable[Sample]]], config: DedupConfig
) -> list[dict[str, str]]:
    """For each part of the set, id -> the earlier conversation that it is merged into, which itself stays.

    Decided in id order over all parts. Each is read twice at most, the second time for conversations that have a pair
    in common with another one about the same picture.
    """
    sizes: list[int] = []

    def listed() -> Iterator[tuple[tuple[str, ...], list[int]]]:
        for part in parts:
            sizes.append(0)
            for sample in part():
                sizes[-1] += 1
                yield _image_key(sample), [pair_key(*pair) for pair in pairs_of(sample)]

    chosen = np.split(may_repeat(listed(), config.radius_bits), np.cumsum(sizes)[:-1])
    talks = [
        _Talk(sample.id, number, _image_key(sample), tuple((q, _hash(a)) for q, a in pairs_of(sample)))
        for number, (part, is_chosen) in enumerate(zip(parts, chosen, strict=False))
        if is_chosen.any()
        for sample, one in zip(part(), is_chosen, strict=True)
        if one
    ]
    merges: list[dict[str, str]] = [{} for _ in parts]
    for talk, target in _repeats(talks, config.radius_bits):
        merges[talk.part][talk.id] = target
    return merges


def _repeats(talks: Iterable[_Talk], radius_bits: int) -> Iterator[tuple[_Talk, str]]:
    ordered = sorted(talks, key=lambda talk: talk.id)
    numbers: dict[tuple[str, ...], int] = {}
    groups = [numbers.setdefault(talk.images, len(numbers)) for talk in ordered]
    near = _neighbours(list(numbers), radius_bits)
    stays: dict[int, list[_Talk]] = defaultdict(list)
    for talk, group in zip(ordered, groups, strict=True):
        candidates = sorted((other for number in near[group] for other in stays[number]), key=lambda o: o.id)
        target = next((other.id for other in candidates if _holds(other.pairs, talk.pairs)), None)
        if target is None:
            stays[group].append(talk)
        else:
            yield talk, target


def pairs_of(sample: Sample) -> Counter[tuple[str, str]]:
    """The (user text, normalised answer) pairs of a conversation."""
    texts = [text_of(turn.content) for turn in sample.turns if turn.role != "system"]
    return Counter((user, normalise(answer)) for user, answer in zip(texts[0::2], texts[1::2], strict=True))


def _holds(earlier: Sequence[tuple[str, bytes]], later: Sequence[tuple[str, bytes]]) -> bool:
    """Whether every pair of the later conversation is in the earlier one."""
    return bool(later) and all(
        any(answer == said and same_question(question, asked) for asked, said in earlier)
        for question, answer in later
    )


def _hash(answer: str) -> bytes:
    return blake2b(answer.encode(), digest_size=16).digest()


def _image_key(sample: Sample) -> tuple[str, ...]:
    """The hashes of its images: perceptual where known, else of the bytes."""
    return tuple(image.phash or image.sha256 for image in sample.images)


def _neighbours(keys: Sequence[tuple[str, ...]], radius_bits: int) -> list[list[int]]:
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
