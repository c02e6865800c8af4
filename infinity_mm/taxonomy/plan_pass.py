"""Pass `plan`: which types of question each image gets, decided over the whole set at once.

seeds --fit--> mapping                    all tagged samples, in id order
                  \\--score--> image -> suitable types --quotas--> image -> types --examples--> plan.json
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from infinity_mm.config import to_plain
from infinity_mm.errors import explain
from infinity_mm.record import Dropped, Emitted, Outcome, Sample, canonical_json, digest, rng_for, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.taxonomy.mapping import Seed, TypeMapping, fit_mapping
from infinity_mm.taxonomy.quotas import assign_types
from infinity_mm.taxonomy.seeds import load_seeds
from infinity_mm.taxonomy.tree import Tree

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

UNIT = "00000"
"""The only unit of the pass."""
PLAN_FILE = "plan.json"
"""Image sample id -> list of {"type", "examples": [two questions], "styles": [allowed answer styles]}."""
MAPPING_FILE = "mapping.json"
"""The fitted mapping, for people: best tags of each type, best types of each tag, all weights."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How types of question are spread over images."""

    tree: str = "windtunnel"
    """`windtunnel`, `default` (216 types), `any_picture` (few types that need no tags), or the path of a YAML file."""
    seeds: str = "windtunnel"
    """`windtunnel`, `tree` (the typical tags of each type), or the path of a JSONL file."""
    num_seed_scenes: int = 400
    """Training scenes that the mapping is fitted on, with seeds: windtunnel."""
    questions_per_image: int = 4
    """Most types one image gets; fewer if fewer suit it."""
    min_fit: float = 0.5
    """A type suits an image if its score is at least this share of the image's best. On the wind tunnel, with true
    tags, 89, 93 and 95 % of the planned questions could in truth be asked at 0.3, 0.5 and 0.7 (by chance 24 %); less
    leaves more choice where a tree has few tags for each type."""
    shares: dict[str, float] = field(default_factory=dict)
    """Weight of a type's quota by path or beginning of a path (`ocr`, `chart/extreme`), the longest match wins;
    default 1, and 0 switches a type off. A sensitive type is on only if it is here with its whole path."""
    include_sensitive: bool = False
    """Whether all types that the tree marks as sensitive (`infinity-mm tree` shows them) are asked for as well."""

    def __post_init__(self) -> None:
        if self.questions_per_image < 1 or self.num_seed_scenes < 1 or not 0 <= self.min_fit <= 1:
            raise explain(
                what="questions_per_image and num_seed_scenes must be 1 or more, min_fit 0 to 1",
                where="plan (configuration)",
                fix="leave them out to get the defaults",
            )
        if any(not share >= 0 for share in self.shares.values()):
            raise explain(
                what="a share is negative", where="plan.shares (configuration)", fix="use 0 or more"
            )


@final
@dataclass(frozen=True, kw_only=True)
class PlanPass:
    """P1, second half: one unit over the whole set; samples go through unchanged, the plan is a file beside them."""

    config: PlanConfig = field(default_factory=PlanConfig)
    seed: int
    """The run's seed; decides which examples are shown."""
    after: str = "tag"
    """The pass whose samples are read."""
    name: str = "plan"

    def fingerprint(self) -> str:
        """Configuration, tree, seeds."""
        seeds = self.config.seeds
        content = hashlib.sha256(Path(seeds).read_bytes()).hexdigest() if os.path.isfile(seeds) else seeds
        config = canonical_json(to_plain(self.config))
        return digest(
            self.name, self.after, config, str(self.seed), Tree.load(self.config.tree).fingerprint, content
        )

    def units(self, run: Run) -> Sequence[Unit]:
        """One: quotas look at all images."""
        return [Unit(id=UNIT, payload=None)]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        """Nothing to start."""
        return self._open(run)

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield _PlanWorker(self, run)


@final
class _PlanWorker:
    def __init__(self, pass_: PlanPass, run: Run) -> None:
        self._pass, self._run = pass_, run

    async def run(self, unit: Unit) -> UnitResult:
        return await asyncio.to_thread(self._work)

    def _work(self) -> UnitResult:
        config, name = self._pass.config, self._pass.name
        tree = Tree.load(config.tree)
        seeds = load_seeds(config.seeds, tree, num_scenes=config.num_seed_scenes)
        mapping = fit_mapping(seeds, tree.leaves)
        samples = sorted(self._run.samples(self._pass.after), key=lambda sample: sample.id)
        plan = make_plan(
            samples, tree=tree, mapping=mapping, seeds=seeds, config=config, seed=self._pass.seed
        )
        outcomes: list[Outcome] = [
            Emitted(sample=sample) if plan[sample.id] else _dropped(sample, name) for sample in samples
        ]
        ids = [sample.id for sample in samples]
        asked = Counter(entry["type"] for entries in plan.values() for entry in entries)
        shares = tree.shares(config.shares, include_sensitive=config.include_sensitive)
        return UnitResult(
            input_ids=ids,
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=settle(name, ids, outcomes),
            dropped=[
                {
                    "id": o.id,
                    "stage": o.stage,
                    "reason": o.reason,
                    "sample": o.sample,
                }
                for o in outcomes
                if isinstance(o, Dropped)
            ],
            metrics={
                "images": len(samples),
                "questions_planned": asked.total(),
                "types_planned": len(asked),
                "types_without_images": sum(share > 0 for share in shares.values()) - len(asked),
            },
            files={
                PLAN_FILE: canonical_json(
                    {id_: entries for id_, entries in plan.items() if entries}
                ).encode(),
                MAPPING_FILE: canonical_json(
                    {"tree": tree.name, "tree_version": tree.version} | mapping.to_plain()
                ).encode(),
            },
        )


def make_plan(
    samples: Sequence[Sample],
    *,
    tree: Tree,
    mapping: TypeMapping,
    seeds: Sequence[Seed],
    config: PlanConfig,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Sample id -> its questions to be; an empty list where no type suits the image."""
    shares = tree.shares(config.shares, include_sensitive=config.include_sensitive)
    anywhere = [path for path, leaf in tree.leaves.items() if leaf.any_image]
    suitable = {}
    for sample in samples:
        scores = {path: score for path, score in mapping.score(sample.tags or ()).items() if shares[path] > 0}
        least = config.min_fit * max(scores.values(), default=0.0)
        fitting = {path: score for path, score in scores.items() if score >= least}
        # What suits any image comes after what its tags speak for; without tags it is all there is.
        suitable[sample.id] = {path: least or 1.0 for path in anywhere if shares[path] > 0} | fitting
    types = assign_types(suitable, per_image=config.questions_per_image, shares=shares)
    pools = _example_pools(tree, seeds)
    return {
        sample.id: [
            {
                "type": path,
                "examples": rng_for(seed, "plan", f"{sample.id}/{path}").sample(pools[path], 2),
                "styles": list(tree.leaves[path].styles),
            }
            for path in types[sample.id]
        ]
        for sample in samples
    }


def _example_pools(tree: Tree, seeds: Sequence[Seed]) -> dict[str, list[str]]:
    """All example questions of each type in alphabetical order: the tree's own and those of the seeds."""
    pools = {path: set(leaf.examples) for path, leaf in tree.leaves.items()}
    for seed in seeds:
        if seed.question and seed.type in pools:
            pools[seed.type].add(seed.question)
    return {path: sorted(pool) for path, pool in pools.items()}


def _dropped(sample: Sample, stage: str) -> Dropped:
    reason = "no_suitable_type" if sample.tags else "no_tags"
    return Dropped(id=sample.id, stage=stage, reason=reason, sample=sample)
