"""The stage contract: the samples of one image in, one list of outcomes out.

Sample* --Stage.run--> Outcome* --settle--> Fate*   (the conservation law, checked at every stage)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from infinity_mm.engines.base import Engine
from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Outcome, Sample


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a stage may look at besides its samples."""

    engines: Mapping[str, Engine]
    """By role: `teacher` asks, checks, answers and rewrites; `judge` scores; `scorer` gives likelihoods."""
    prompts: PromptSet
    seed: int
    """The run's seed; draws depend on it, the stage and the sample id alone."""
    edition: str = ""
    """In a replay: what sets its conversations' ids apart from those of the run it replays."""


@runtime_checkable
class Stage(Protocol):
    """One step of a journey; looks at nothing outside its image and the plan."""

    name: str
    reads: frozenset[str]
    """Fields of `Sample` that must be written before."""
    writes: frozenset[str]
    """Fields of `Sample` that it writes."""
    roles: frozenset[str]
    """Engines it talks to; empty for a stage that asks no model."""
    prompts: frozenset[str]
    """Names of the prompts it uses."""
    needs_probabilities: frozenset[str]
    """Roles whose engine must give the probabilities of choices."""

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One fate for every sample; see `record.settle`."""
        ...


def check_wiring(stages: Sequence[Stage], *, start: frozenset[str]) -> None:
    """Raise `UserError` if a stage reads a field that no earlier stage writes."""
    written = set(start)
    for stage in stages:
        missing = sorted(stage.reads - written)
        if missing:
            raise explain(
                what=f"stage `{stage.name}` reads {', '.join(missing)}, which nothing before it writes",
                where="stages (configuration)",
                fix=f"put a stage that writes it before `{stage.name}`",
            )
        written |= stage.writes


def check_prompts(stages: Sequence[Stage], prompts: PromptSet) -> None:
    """Raise `UserError` if a stage uses a prompt that the set does not have."""
    for stage in stages:
        for prompt in sorted(stage.prompts):
            prompts.text(prompt)


def check_engines(stages: Sequence[Stage], engines: Mapping[str, Engine], *, images: int = 1) -> None:
    """Raise `UserError` if an engine cannot do what a stage needs; `images` is the most images of one sample."""
    for stage in stages:
        for role in sorted(stage.roles):
            if role not in engines:
                raise explain(
                    what=f"stage `{stage.name}` needs a {role}, and there is none",
                    where="engines (configuration)",
                    fix=f"configure engines.{role}, best a model of another family than the teacher's",
                )
            can = engines[role].capabilities
            if role == "scorer" and not can.likelihood:
                raise explain(
                    what=f"stage `{stage.name}` needs likelihoods, and the {role} gives none",
                    where=f"engines.{role} (configuration)",
                    fix="use an engine of kind transformers, or vLLM with `likelihood: true`",
                )
            if can.images_per_prompt < images:
                raise explain(
                    what=f"stage `{stage.name}` shows {images} image(s), the {role} takes {can.images_per_prompt}",
                    where=f"engines.{role} (configuration)",
                    fix="use a model that sees images, or raise its limit of images per prompt",
                )
            if role in stage.needs_probabilities and not can.choice_logprobs:
                raise explain(
                    what=f"stage `{stage.name}` compares probabilities, and the {role} gives none",
                    where=f"engines.{role} (configuration)",
                    fix=f"use an engine with log-probabilities, or set {stage.name}.min_probability to null",
                )
