"""The configuration of a synthesis run: everything between the images and the published data set.

configs/synth/X.yaml --load_config--> SynthConfig --passes--> read, unique, tag, plan, journeys, dedup, publish
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from infinity_mm.engines.spec import EngineConfig
from infinity_mm.engines.vllm import VllmSpec, check_shares
from infinity_mm.errors import explain
from infinity_mm.runtime.budget import BudgetConfig
from infinity_mm.runtime.executors import ExecutorConfig
from infinity_mm.runtime.passes import Pass
from infinity_mm.sources.read_pass import ReadConfig, ReadPass
from infinity_mm.sources.unique_pass import UniquePass
from infinity_mm.synth.cap_pass import CapPass
from infinity_mm.synth.dedup_pass import DedupConfig, DedupPass
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.publish_pass import PublishConfig, PublishPass
from infinity_mm.synth.repeats_pass import RepeatsPass
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.taxonomy.plan_pass import PlanConfig, PlanPass
from infinity_mm.taxonomy.tag_pass import TagPass
from infinity_mm.taxonomy.tagger import TaggerConfig


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    """The models by role."""

    teacher: EngineConfig
    """Asks, checks, answers and rewrites."""
    judge: EngineConfig | None = None
    """Scores; null: the teacher, as in Infinity-MM. Another model family does not prefer its own words."""
    scorer: EngineConfig | None = None
    """Gives the likelihood of answers, for the stage `loss`; a model of another family than the teacher's."""


@dataclass(frozen=True, kw_only=True)
class SynthConfig(JourneyConfig):
    """A run. The fields of `JourneyConfig` (stages, prompts, ask, check, ...) are keys beside these."""

    name: str
    """What the run is called in its summary and report."""
    run_dir: str
    """Where everything goes; an absolute path or a URL. The same run_dir again goes on where it was."""
    read: ReadConfig
    """Where images come from, and which are taken in."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    engines: EnginesConfig
    dedup: DedupConfig = field(default_factory=DedupConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Hard limits; the run stops cleanly at the first one, and goes on with a higher one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy.rewrite_at is not None and "decide" in self.stages and "rewrite" not in self.stages:
            raise explain(
                what="the policy sends answers to be rewritten, and no stage rewrites them",
                where="policy.rewrite_at, stages (configuration)",
                fix="set policy.rewrite_at to null, or put `rewrite` after `decide`",
            )
        if "loss" in self.stages and self.engines.scorer is None:
            raise explain(
                what="stage `loss` needs a model that scores, and there is none",
                where="engines.scorer (configuration)",
                fix="configure engines.scorer with a model of another family than the teacher's",
            )
        roles = [
            role.spec()
            for role in (self.engines.teacher, self.engines.judge, self.engines.scorer)
            if role is not None
        ]
        own = [spec for i, spec in enumerate(roles) if isinstance(spec, VllmSpec) and spec not in roles[:i]]
        check_shares(own, self.executor.gpus_per_worker)

    @property
    def journeys(self) -> JourneyConfig:
        """The part that the journeys see."""
        return JourneyConfig(**{f.name: getattr(self, f.name) for f in fields(JourneyConfig)})

    def passes(self) -> list[Pass]:
        """In order; each reads what the one before committed."""
        return [
            ReadPass(config=self.read),
            UniquePass(),
            TagPass(config=self.tagger, journal=self.journal),
            PlanPass(config=self.plan, seed=self.seed),
            *self.passes_from_journeys(),
        ]

    def passes_from_journeys(self, *, after: str = "plan", edition: str = "") -> list[Pass]:
        """The second half, which a replay has too; see `JourneyPass` for what it says of itself."""
        judge, scorer = self.engines.judge, self.engines.scorer
        cap = [CapPass(max_blind_share=self.policy.max_blind_share)] if self.policy.blind == "cap" else []
        counted = self.dedup.count_questions or self.policy.max_repeats is not None
        repeats = [RepeatsPass(max_repeats=self.policy.max_repeats)] if counted else []
        return [
            JourneyPass(
                config=self.journeys,
                teacher=self.engines.teacher.spec(),
                judge=None if judge is None else judge.spec(),
                scorer=None if scorer is None else scorer.spec(),
                tree=self.plan.tree,
                images_per_sample=max((s.images_per_sample for s in self.read.sources), default=1),
                after=after,
                edition=edition,
            ),
            *cap,
            DedupPass(config=self.dedup, after=cap[0].name if cap else "journeys"),
            *repeats,
            PublishPass(
                config=self.publish,
                after=repeats[0].name if repeats else "dedup",
                is_simulated=self.journal == "simulate",
            ),
        ]
