"""Pass `journeys` (P2): every planned image walked through the stages, hundreds at a time.

samples + plan.json of `plan` --units of images--> travel * N in flight --> conversations, pairs.jsonl
                                                      | \\--> dropped, quarantined, one fate per stage
                                                   Journaled(engine): no reply is paid for twice
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

from infinity_mm.config import to_plain
from infinity_mm.engines.allowance import with_allowance
from infinity_mm.engines.base import ENDS_RUN, Engine, EngineSpec
from infinity_mm.engines.journaled import Journaled
from infinity_mm.engines.simulate import SimulatedSpec
from infinity_mm.errors import BudgetSpentError, explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Dropped, Quarantined, Sample, canonical_json, digest
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.storage.shards import jsonl_bytes, read_jsonl
from infinity_mm.synth.ids import image_id
from infinity_mm.synth.journey import Journey, travel, walk
from infinity_mm.synth.stage import Context, Stage, check_engines
from infinity_mm.synth.stages import JourneyConfig, build_stages
from infinity_mm.taxonomy.plan_pass import PLAN_FILE
from infinity_mm.taxonomy.tree import Tree

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

PAIRS_FILE = "pairs.jsonl"
"""Committed beside the conversations: every question-answer pair in one, with type, style, score and provenance."""
EXECUTION = frozenset({"images_in_flight", "images_per_shard", "max_failed_share", "journal"})
"""Keys of `JourneyConfig` that decide how fast and how cut, not what."""
ENTRIES_FILE = "entries.json"
"""For a replay, committed beside the samples: id -> the stage at which it goes on."""
_Walk = Callable[[Journey], Awaitable[None]]
_SWITCH_S = 0.0005
"""Shards are made and synced in threads beside the event loop, and with Python's own 5 ms every reply that comes
meanwhile waits as long for its turn: 5 % of the throughput at 64 calls of 50 ms."""
_FEW_FAILURES = 4
"""So many failed calls stop no run, however small the shard, unless none may fail."""


@final
@dataclass(frozen=True, kw_only=True)
class JourneyPass:
    """P2: from planned images to conversations."""

    config: JourneyConfig
    teacher: EngineSpec
    judge: EngineSpec | None = None
    """None: the teacher judges its own answers."""
    scorer: EngineSpec | None = None
    """Gives likelihoods; needed by the stage `loss` alone."""
    images_per_sample: int = 1
    """Most images that one sample has; the engines must take as many in one request."""
    tree: str
    """Instruction tree the plan was made with: definitions of types and the styles that suit them."""
    after: str = "plan"
    """The pass whose samples and plan are read."""
    edition: str = ""
    """Not empty for a replay: the samples read are questions and pairs, and `ENTRIES_FILE` says where each goes on."""
    name: str = "journeys"

    def fingerprint(self) -> str:
        """Configuration, prompts, tree and engines."""
        config = {key: value for key, value in to_plain(self.config).items() if key not in EXECUTION}
        return digest(
            self.name,
            self.after,
            self.edition,
            canonical_json(config),
            PromptSet.load(self.config.prompts).fingerprint,
            Tree.load(self.tree).fingerprint,
            canonical_json([[role, to_plain(spec)] for role, spec in self._specs().items()]),
        )

    def units(self, run: Run) -> Sequence[Unit]:
        """The planned images in id order, cut into equal parts; a replay's come cut, no image in two."""
        if self.edition:
            return [Unit(id=unit, payload=unit) for unit in _plan_units(self, run)]
        units: list[Unit] = []
        for plan_unit in _plan_units(self, run):
            num_images = run.num_samples(self.after, plan_unit)
            for start in range(0, num_images, self.config.images_per_shard):
                stop = min(start + self.config.images_per_shard, num_images)
                payload = {"plan_unit": plan_unit, "start": start, "stop": stop}
                units.append(Unit(id=f"{len(units):05d}", payload=payload))
        return units

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Start or connect the engines; stages, prompts and engines are checked before the first call."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        prompts = PromptSet.load(self.config.prompts)
        stages = build_stages(self.config, Tree.load(self.tree), prompts)
        async with AsyncExitStack() as stack:
            engines = await self._engines(run, stack)
            check_engines(stages, engines, images=self.images_per_sample)
            context = Context(engines=engines, prompts=prompts, seed=self.config.seed, edition=self.edition)
            stack.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(_SWITCH_S)
            yield _JourneyWorker(self, run, stages, context)

    def _specs(self) -> dict[str, EngineSpec]:
        """By role; a simulated run asks none of the configured engines, and is another pass for it."""
        specs = {"teacher": self.teacher, "judge": self.judge or self.teacher}
        specs |= {} if self.scorer is None else {"scorer": self.scorer}
        return dict.fromkeys(specs, SimulatedSpec()) if self.config.journal == "simulate" else specs

    async def _engines(self, run: Run, stack: AsyncExitStack) -> dict[str, Engine]:
        """By role; two roles with the same specification share one engine, and so its prefix cache."""
        journal = run.journal(self.name)
        opened: dict[str, Engine] = {}
        roles: dict[str, Engine] = {}
        mode = "replay" if self.config.journal == "replay" else "record"
        for role, spec in self._specs().items():
            key = canonical_json([type(spec).__name__, to_plain(spec)])
            if key not in opened:
                engine = await stack.enter_async_context(spec.open(run.images))
                if run.link is not None and self.config.journal != "simulate":  # which spends nothing
                    engine = with_allowance(engine, run.link.purse)
                opened[key] = Journaled(engine, journal, mode=mode)
            roles[role] = opened[key]
        return roles


def _plan_units(pass_: JourneyPass, run: Run) -> tuple[str, ...]:
    manifest = run.manifest(pass_.after)
    assert manifest is not None, f"pass {pass_.name} runs after {pass_.after}"
    return manifest.units


@final
class _JourneyWorker:
    """Two open engines and a bound on journeys under way, over all units the worker has open."""

    def __init__(self, pass_: JourneyPass, run: Run, stages: Sequence[Stage], context: Context) -> None:
        self._pass, self._run, self._stages, self._context = pass_, run, stages, context
        self._places = asyncio.Semaphore(pass_.config.images_in_flight)
        self._plans: dict[str, tuple[list[Sample], Mapping[str, Any]]] = {}

    async def run(self, unit: Unit) -> UnitResult:
        """All images of the unit at once, as far as there are places."""
        samples, walks = self._replayed(unit) if self._pass.edition else self._planned(unit)
        journeys = [Journey() for _ in walks]
        if self._run.link is not None:
            self._run.link.watch(unit.id, lambda: under_way(journeys))
        await self._all([self._placed(walk, journey) for walk, journey in zip(walks, journeys, strict=True)])
        result = await asyncio.to_thread(unit_result, samples, journeys)
        check_outages(result.metrics, self._pass.config.max_failed_share)
        return result

    async def _all(self, journeys: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Like a task group, but what one journey raises comes out as itself, so that it can be told to a person.

        One that the budget stops stops no other: they wait for replies that are paid for.
        """
        tasks = [asyncio.create_task(journey) for journey in journeys]
        try:
            spent: BudgetSpentError | None = None
            for task in asyncio.as_completed(tasks):
                try:
                    await task
                except BudgetSpentError as error:
                    spent = error
            if spent is not None:
                raise spent
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _planned(self, unit: Unit) -> tuple[list[Sample], list[_Walk]]:
        """Images, and their journeys from the first stage."""
        samples, plan = self._plan(unit.payload["plan_unit"])
        images = samples[unit.payload["start"] : unit.payload["stop"]]
        return images, [partial(self._travel, image, plan.get(image.id, [])) for image in images]

    def _replayed(self, unit: Unit) -> tuple[list[Sample], list[_Walk]]:
        """Samples that were set aside, and for each image among them a journey that they join on the way."""
        after = self._pass.after
        samples = self._run.unit_samples(after, unit.payload)
        stage_of = json.loads(self._run.read_file(after, unit.payload, ENTRIES_FILE))
        by_image: dict[str, dict[str, list[Sample]]] = {}
        for sample in samples:
            by_image.setdefault(image_id(sample.id), {}).setdefault(stage_of[sample.id], []).append(sample)
        return samples, [partial(self._walk, entering) for entering in by_image.values()]

    async def _placed(self, walk: _Walk, journey: Journey) -> None:
        async with self._places:
            await walk(journey)

    async def _travel(self, image: Sample, planned: Sequence[Mapping[str, Any]], journey: Journey) -> None:
        await travel(image, planned, self._stages, self._context, journey)

    async def _walk(self, entering: Mapping[str, Sequence[Sample]], journey: Journey) -> None:
        await walk(journey, entering, self._stages, self._context)

    def _plan(self, plan_unit: str) -> tuple[list[Sample], Mapping[str, Any]]:
        """Samples and plan of one unit of the pass before; the last one read is kept."""
        if plan_unit not in self._plans:
            after = self._pass.after
            samples = self._run.unit_samples(after, plan_unit)
            plan = json.loads(self._run.read_file(after, plan_unit, PLAN_FILE))
            self._plans = {plan_unit: (samples, plan)}
        return self._plans[plan_unit]


def under_way(journeys: Sequence[Journey]) -> dict[str, float]:
    """What journeys have come to so far, under the names that the unit will be committed with."""
    counts: Counter[str] = Counter()
    for journey in journeys:
        counts.update(journey.metrics)
        counts.update(f"fate/{fate.stage}/{fate.fate}/{fate.reason}" for fate in journey.fates)
        counts.update({"in": int(journey.is_done), "pairs": len(journey.pairs)})
    return dict(counts)


def unit_result(given: Sequence[Sample], journeys: Sequence[Journey]) -> UnitResult:
    """The journeys of a unit, and the samples they began with, as what is committed."""
    metrics: Counter[str] = Counter()
    for journey in journeys:
        metrics.update(journey.metrics)
    conversations = [sample for journey in journeys for sample in journey.samples]
    pairs = [pair for journey in journeys for pair in journey.pairs]
    return UnitResult(
        input_ids=[sample.id for sample in given],
        samples=conversations,
        fates=[fate for journey in journeys for fate in journey.fates],
        dropped=[set_aside(outcome) for journey in journeys for outcome in journey.dropped],
        quarantined=[set_aside(outcome) for journey in journeys for outcome in journey.quarantined],
        metrics={"images": len(journeys), "conversations": len(conversations), "pairs": len(pairs)} | metrics,
        files={PAIRS_FILE: jsonl_bytes([{"id": pair.id, "sample": pair} for pair in pairs])},
    )


def check_outages(metrics: Mapping[str, float], max_failed_share: float) -> None:
    """Stop rather than set everything aside because a server was down; replies that came are in the journal.

    No server, an expired key, a spent quota or a model that is gone say nothing about a sample and pass for none, so
    one such call is enough.
    """
    num_calls = sum(value for key, value in metrics.items() if key.startswith("calls."))
    num_failed = metrics.get("outages", 0)
    allowed = max(_FEW_FAILURES, max_failed_share * num_calls) if max_failed_share else 0
    is_over = any(metrics.get(f"outages.{reason}") for reason in ENDS_RUN)
    if num_failed > allowed or (is_over and max_failed_share < 1):
        kinds = {key.partition(".")[2]: int(n) for key, n in metrics.items() if key.startswith("outages.")}
        raise explain(
            what=f"{num_failed:.0f} of {num_calls:.0f} calls of a shard failed, retries included: {kinds}",
            where="engines (configuration)",
            fix="look after the server (after http_401 to http_404: its key, quota, the name of the model) and "
            "run the same command again, or raise max_failed_share to set them aside",
        )


def read_pairs(run: Run, pass_name: str, unit: str) -> list[Sample]:
    """The pairs that a unit committed."""
    lines = read_jsonl(run.read_file(pass_name, unit, PAIRS_FILE))
    return [Sample.from_json(canonical_json(line["sample"])) for line in lines]


def set_aside(outcome: Dropped | Quarantined) -> dict[str, Any]:
    """A row for people: why, and the whole record."""
    row = {"id": outcome.id, "stage": outcome.stage, "reason": outcome.reason, "sample": outcome.sample}
    if isinstance(outcome, Quarantined):
        return row | {"error": outcome.error}
    return row | {"detail": outcome.detail} if outcome.detail else row
