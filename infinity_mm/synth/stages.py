"""Which stages there are, how they are configured, and the ordered list a run uses.

[ask, distinct, ...] --STAGES--> Stage* --check_wiring, check_prompts--> ready
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy
from infinity_mm.synth.answer import Answer, AnswerConfig
from infinity_mm.synth.ask import Ask, AskConfig
from infinity_mm.synth.blind import Blind, BlindConfig
from infinity_mm.synth.check import Check, CheckConfig
from infinity_mm.synth.choice import ChoiceConfig
from infinity_mm.synth.critic import Critic, CriticConfig
from infinity_mm.synth.decide import Decide
from infinity_mm.synth.distinct import Distinct, DistinctConfig
from infinity_mm.synth.grounding import GroundingConfig
from infinity_mm.synth.judge import Judge, JudgeConfig
from infinity_mm.synth.loss import Loss
from infinity_mm.synth.merge import Merge, MergeConfig
from infinity_mm.synth.rewrite import Rewrite, RewriteConfig
from infinity_mm.synth.spread import WRITES
from infinity_mm.synth.stage import Stage, check_prompts, check_wiring
from infinity_mm.synth.styles import Styles, StylesConfig
from infinity_mm.taxonomy.tree import Tree


@dataclass(frozen=True, kw_only=True)
class JourneyConfig:
    """What happens to an image between its plan and its conversations."""

    seed: int = 0
    """Decides every draw, together with stage and sample id."""
    prompts: str = "default"
    """Prompt set: `default` (English) or `chinese` for real VLMs, `nano` for the wind tunnel's own, or a folder."""
    stages: tuple[str, ...] = (
        "ask",
        "distinct",
        "check",
        "styles",
        "answer",
        "judge",
        "decide",
        "rewrite",
        "merge",
    )
    """In order; names from `STAGES`."""
    ask: AskConfig = field(default_factory=AskConfig)
    distinct: DistinctConfig = field(default_factory=DistinctConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    styles: StylesConfig = field(default_factory=StylesConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    blind: BlindConfig = field(default_factory=BlindConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    policy: Policy = field(default_factory=Policy)
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    images_per_shard: int = 64
    """Images in one work shard; a kill costs at most the shards in flight."""
    images_in_flight: int = 256
    """Journeys a worker has under way at once."""
    max_failed_share: float = 0.25
    """Largest share of a shard's calls that may fail for reasons that pass (a server that is down or overloaded).
    Above it the run stops instead of setting the shard aside; the same command goes on once the server is back. With
    0 one failed call is enough. Calls that no server could or would take (none up, an expired key, a spent quota, a
    model that is not there) stop the run, however few, unless this is 1."""
    journal: Literal["record", "replay", "simulate"] = "record"
    """`replay` asks no model: every reply must be in the run's journal. `simulate` makes replies up, to see the shape
    of a run: they are marked, and the publish pass lets none through."""

    def __post_init__(self) -> None:
        if self.images_per_shard < 1 or self.images_in_flight < 1:
            raise explain(
                what=f"images_per_shard={self.images_per_shard}, images_in_flight={self.images_in_flight}",
                where="configuration",
                fix="set both to at least 1",
            )
        if not 0 <= self.max_failed_share <= 1:
            raise explain(
                what=f"max_failed_share={self.max_failed_share} is not a share",
                where="configuration",
                fix="set it between 0 and 1",
            )
        check_names(self.stages)
        _check_labels(self.stages, self.policy)


STAGES: dict[str, Callable[[JourneyConfig, Tree], Stage]] = {
    "ask": lambda config, tree: _ask(config, tree),
    "distinct": lambda config, tree: Distinct(config.distinct, _ask(config, tree)),
    "check": lambda config, tree: Check(config.check),
    "critic": lambda config, tree: Critic(config.critic, config.policy, _descriptions(tree)),
    "styles": lambda config, tree: Styles(config.styles, tree.styles),
    "answer": lambda config, tree: Answer(
        config.answer, config.choice, config.grounding, any_language=_any_language(tree)
    ),
    "blind": lambda config, tree: Blind(config.blind),
    "loss": lambda config, tree: Loss(),
    "judge": lambda config, tree: Judge(config.judge),
    "decide": lambda config, tree: Decide(config.policy),
    "rewrite": lambda config, tree: Rewrite(
        config.rewrite,
        config.policy,
        config.judge,
        [STAGES[name](config, tree) for name in config.stages if name in FILTERS],
        any_language=_any_language(tree),
    ),
    "merge": lambda config, tree: Merge(config.merge),
}


FILTERS = ("blind", "loss")
"""Stages that label answers, and label them anew when they are rewritten."""


def _ask(config: JourneyConfig, tree: Tree) -> Ask:
    boxed = [path for path, leaf in tree.leaves.items() if leaf.asks_about_a_box]
    return Ask(config.ask, _descriptions(tree), boxed=boxed, regions=config.grounding)


def _any_language(tree: Tree) -> list[str]:
    return [path for path, leaf in tree.leaves.items() if leaf.any_language]


def _descriptions(tree: Tree) -> dict[str, str]:
    return {path: leaf.description for path, leaf in tree.leaves.items()}


def _check_labels(names: Sequence[str], policy: Policy) -> None:
    """Refuse a policy on labels that nobody measures, or only after the decision."""
    before = names[: names.index("decide")] if "decide" in names else names
    for label in sorted(policy.needs - set(before)):
        raise explain(
            what=f"the policy drops by the label `{label}`, and no stage measures it before the decision",
            where="policy, stages (configuration)",
            fix=f"put `{label}` before `decide`, or let the policy only label",
        )


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown stage, and one that is there twice: a sample has one fate per stage."""
    for place, name in enumerate(names):
        if name not in STAGES:
            near = difflib.get_close_matches(name, list(STAGES), n=1)
            raise explain(
                what=f"there is no stage `{name}`",
                where=f"stages[{place}] (configuration)",
                fix=(f"did you mean `{near[0]}`? " if near else "") + f"known stages: {', '.join(STAGES)}",
            )
        if name in names[:place]:
            raise explain(
                what=f"stage `{name}` is there twice",
                where="stages (configuration)",
                fix="name each stage once",
            )


def build_stages(config: JourneyConfig, tree: Tree, prompts: PromptSet) -> list[Stage]:
    """The stages of a run, with their wiring and prompts checked."""
    stages = [STAGES[name](config, tree) for name in config.stages]
    check_wiring(stages, start=WRITES)
    check_prompts(stages, prompts)
    if not any("turns" in stage.writes for stage in stages):
        raise explain(
            what="no stage makes conversations",
            where="stages (configuration)",
            fix="put `merge` last",
        )
    return stages
