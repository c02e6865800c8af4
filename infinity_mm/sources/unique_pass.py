"""Pass `unique`: one sample per distinct image, named by its content.

samples of `read`, in order --driver: first of each hash wins--> per unit: who is merged into whom
winner --> new sample, id = start of the image hash, with conversations and tags of all its copies
copy   --> merged into it, wherever that one lies
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, final

from infinity_mm.record import Emitted, Fate, ImageSlot, Outcome, Sample, Turn, digest, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.sources.read_pass import ITEMS_FILE
from infinity_mm.storage.shards import read_jsonl

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniquePass:
    """P0, second half: exact duplicates, found over the whole set before any model sees an image."""

    after: str = "read"
    """The pass whose samples are read."""
    name: str = "unique"

    def fingerprint(self) -> str:
        """There is nothing to configure."""
        return digest(self.name, self.after)

    def units(self, run: Run) -> Sequence[Unit]:
        """One unit per unit of `read`; copies, and what they add to a winner, come with the payload."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        winner: dict[tuple[str, ...], tuple[str, str]] = {}
        copies: dict[str, dict[str, str]] = {unit: {} for unit in manifest.units}
        added: dict[str, dict[str, list[str]]] = {unit: {} for unit in manifest.units}
        for unit in manifest.units:
            for sample in _in_order(run, self.after, unit):
                shas = tuple(image.sha256 for image in sample.images)
                home, id_ = winner.setdefault(shas, (unit, sample.id))
                if id_ != sample.id:
                    copies[unit][sample.id] = content_id(sample)
                    brings = [sample.to_json()] if sample.turns or sample.tags is not None else []
                    added[home].setdefault(id_, []).extend(brings)
        return [
            Unit(id=unit, payload={"copies": copies[unit], "added": added[unit]}) for unit in manifest.units
        ]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _UniqueWorker(self, run)


def _in_order(run: Run, pass_name: str, unit: str) -> Sequence[Sample]:
    """The samples of a unit as the source listed them; a shard has them in order of id."""
    # Not `splitlines`: a file name may hold U+2028, which JSON leaves as it is.
    rows = read_jsonl(run.read_file(pass_name, unit, ITEMS_FILE))
    order = {row["id"]: number for number, row in enumerate(rows)}
    return sorted(run.unit_samples(pass_name, unit), key=lambda sample: order[sample.id])


@final
class _UniqueWorker:
    def __init__(self, pass_: UniquePass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        samples = self._run.unit_samples(self._pass.after, unit.id)
        copies: dict[str, str] = unit.payload["copies"]
        added: dict[str, list[str]] = unit.payload["added"]
        winners = [sample for sample in samples if sample.id not in copies]
        outcomes: list[Outcome] = [
            Emitted(sample=_by_content(sample, [Sample.from_json(text) for text in added.get(sample.id, [])]))
            for sample in winners
        ]
        fates = settle(self._pass.name, [sample.id for sample in winners], outcomes)
        # Not through `settle`: the winner may lie in another unit. The ledger checks over the whole pass that what a
        # copy was merged into went on, for which the winner's new id needs a line of its own.
        for sample in winners:
            if sample.id in added:
                fates.append(Fate(id=content_id(sample), stage=self._pass.name, fate="continued"))
        for id_, target in copies.items():
            fates.append(Fate(id=id_, stage=self._pass.name, fate="merged", into=(target,)))
        return UnitResult(
            input_ids=[sample.id for sample in samples],
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=fates,
            metrics={"images": len(winners), "duplicate_images": len(copies)},
        )


def content_id(sample: Sample) -> str:
    """16 hex digits of the image's hash: the same picture has the same id in every run and from every source.

    Of several images the digits stand for all of them in their order.
    """
    shas = [image.sha256 for image in sample.images]
    return shas[0][:16] if len(shas) == 1 else digest("images", *shas)[:16]


def _by_content(sample: Sample, copies: Iterable[Sample]) -> Sample:
    return dataclasses.replace(
        sample,
        id=content_id(sample),
        parents=(sample.id,),
        turns=join_conversations([sample.turns, *(copy.turns for copy in copies)]),
        tags=next((one.tags for one in (sample, *copies) if one.tags is not None), None),
    )


def join_conversations(conversations: Iterable[tuple[Turn, ...]]) -> tuple[Turn, ...]:
    """Different conversations about one image as one: each once, in order, the image shown only in the first."""
    joined: list[Turn] = []
    seen: set[tuple[Turn, ...]] = set()
    for turns in conversations:
        if not turns or turns in seen:
            continue
        seen.add(turns)
        joined += [_without_image(turn) for turn in turns if turn.role != "system"] if joined else turns
    return tuple(joined)


def _without_image(turn: Turn) -> Turn:
    return Turn(turn.role, tuple(part for part in turn.content if not isinstance(part, ImageSlot)))
