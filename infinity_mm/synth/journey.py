"""The journey of one image: depth first through the stages, every sample accounted for at every stage.

image --spread--> questions --ask--distinct--check--styles--answer--judge--decide--rewrite--merge--> conversations
                                \\-------- settle: one fate per sample and stage --------/
        \\--the conversation it came with, which no model is asked about--------------merge--/
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, final

from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    Failure,
    Likelihood,
    Reply,
    Request,
    Scoring,
)
from infinity_mm.errors import UserError
from infinity_mm.record import Dropped, Emitted, Fate, Merged, Outcome, Quarantined, Sample, settle
from infinity_mm.synth.exchange import quarantine
from infinity_mm.synth.ids import is_source
from infinity_mm.synth.spread import STAGE, spread
from infinity_mm.synth.stage import Context, Stage

A = TypeVar("A", bound=Reply | Likelihood | Failure)


@dataclass(kw_only=True)
class Journey:
    """What one image became."""

    samples: list[Sample] = field(default_factory=list)
    """What came out of the last stage."""
    fates: list[Fate] = field(default_factory=list)
    """One per stage and sample that entered it, in the order of the stages."""
    dropped: list[Dropped] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    pairs: list[Sample] = field(default_factory=list)
    """The question-answer pairs that were merged into conversations, with type, style and score."""
    metrics: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Calls, replies from the journal, failures, tokens, by stage; seconds in each stage."""
    is_done: bool = False


async def travel(
    image: Sample,
    planned: Sequence[Mapping[str, Any]],
    stages: Sequence[Stage],
    context: Context,
    journey: Journey | None = None,
) -> Journey:
    """Walk one image through the stages; `journey` is written as it goes, for whoever looks on.

    What a stage raises costs the samples it was given, and is written down with them. Mistakes that would be the
    same for every image (`UserError`) and broken accounts (`ConservationError`) end the run.
    """
    journey = journey or Journey()
    entering: defaultdict[str, list[Sample]] = defaultdict(list)
    merging = next((stage.name for stage in stages if "turns" in stage.writes), stages[-1].name)
    for sample in _enter(journey, STAGE, [image], spread(image, planned)):
        entering[merging if is_source(sample.id) else stages[0].name].append(sample)
    return await walk(journey, entering, stages, context)


async def walk(
    journey: Journey, entering: Mapping[str, Sequence[Sample]], stages: Sequence[Stage], context: Context
) -> Journey:
    """Take samples of one image through the stages, each from the stage at which it enters."""
    alive: list[Sample] = []
    for stage in stages:
        alive = [*entering.get(stage.name, ()), *alive]
        if not alive:
            continue
        start = time.monotonic()
        try:
            outcomes = await stage.run(alive, _metered(context, stage, journey.metrics))
        except UserError:
            raise
        except Exception as error:
            outcomes = [quarantine(sample, stage.name, error) for sample in alive]
        journey.metrics[f"seconds.{stage.name}"] += time.monotonic() - start
        alive = _enter(journey, stage.name, alive, outcomes)
    journey.samples = alive
    journey.is_done = True
    return journey


def _enter(
    journey: Journey, stage: str, given: Sequence[Sample], outcomes: Sequence[Outcome]
) -> list[Sample]:
    """Settle one stage, write its outcomes into the journey, and return the samples that go on."""
    journey.fates += settle(stage, [sample.id for sample in given], outcomes)
    merged = {outcome.id for outcome in outcomes if isinstance(outcome, Merged)}
    journey.pairs += [sample for sample in given if sample.id in merged and not is_source(sample.id)]
    journey.dropped += [outcome for outcome in outcomes if isinstance(outcome, Dropped)]
    journey.quarantined += [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]
    return [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]


def _metered(context: Context, stage: Stage, metrics: defaultdict[str, float]) -> Context:
    engines = {role: Metered(engine, stage.name, metrics) for role, engine in context.engines.items()}
    return replace(context, engines=engines)


@final
class Metered:
    """Counts what one stage asks an engine."""

    def __init__(self, engine: Engine, stage: str, metrics: defaultdict[str, float]) -> None:
        self._engine = engine
        self._stage = stage
        self._metrics = metrics

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner engine."""
        return self._engine.capabilities

    @property
    def fingerprint(self) -> str:
        """That of the inner engine."""
        return self._engine.fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """The inner engine's answers."""
        return self._counted(await self._engine.generate(requests))

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """The same for likelihoods; the tokens of a scored text were given, so they count as prompt."""
        return self._counted(await self._engine.score(scorings))

    def _counted(self, answers: list[A]) -> list[A]:
        self._metrics[f"calls.{self._stage}"] += len(answers)
        for answer in answers:
            if isinstance(answer, Failure):
                self._metrics[f"failed_calls.{self._stage}"] += 1
                if answer.is_outage:
                    self._metrics["outages"] += 1
                    self._metrics[f"outages.{answer.reason}"] += 1
            else:
                told = answer.num_tokens if isinstance(answer, Likelihood) else 0
                said = 0 if isinstance(answer, Likelihood) else answer.completion_tokens
                self._metrics[f"from_journal.{self._stage}"] += answer.from_journal
                if answer.simulated:
                    self._metrics["simulated"] += 1
                self._metrics[f"prompt_tokens.{self._stage}"] += answer.prompt_tokens + told
                if isinstance(answer, Reply):
                    self._metrics[f"cached_tokens.{self._stage}"] += answer.cached_tokens
                self._metrics[f"completion_tokens.{self._stage}"] += said
                if not answer.from_journal:
                    self._metrics["tokens_now"] += answer.prompt_tokens + told + said
        return answers
