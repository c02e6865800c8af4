"""Pass `plan`: which types of question each image gets, decided over the whole set at once.

driver:  seeds --fit--> mapping; tagged samples, unit by unit --score--> suitable types --quotas--> types of each image
workers: samples of a unit, their types --examples--> samples, plan.json of the unit

The driver holds numbers only, some hundred bytes an image, so that ten million images fit.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from infinity_mm.config import to_plain
from infinity_mm.errors import explain
from infinity_mm.record import Dropped, Emitted, Outcome, Sample, Tag, canonical_json, digest, rng_for, settle
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.taxonomy.mapping import MappingConfig, Seed, fit_mapping
from infinity_mm.taxonomy.quotas import NONE, Candidates
from infinity_mm.taxonomy.seeds import load_seeds, with_own_tags
from infinity_mm.taxonomy.tree import Tree

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

PLAN_FILE = "plan.json"
"""Image sample id -> list of {"type", "examples": [two questions], "styles": [allowed answer styles]}; one per unit."""
MAPPING_FILE = "mapping.json"
"""The fitted mapping, for people: best tags of each type, best types of each tag, all weights; in the first unit."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How types of question are spread over images."""

    tree: str = "windtunnel"
    """`windtunnel`, `default` (216 types), `any_picture` (few types that need no tags), or the path of a YAML file."""
    seeds: str | None = None
    """`windtunnel`, `tree` (the typical tags of each type), or the path of a JSONL file; null: `windtunnel` for that
    tree and `tree` for any other. A type that none of the seeds is of has its own tags for one."""
    num_seed_scenes: int = 400
    """Training scenes that the mapping is fitted on, with seeds: windtunnel."""
    questions_per_image: int = 4
    """Most types one image gets; fewer if fewer suit it."""
    mapping: MappingConfig = field(default_factory=MappingConfig)
    """Which TF-IDF."""
    min_fit: float = 0.5
    """A type suits an image if its score is at least this share of the image's best. On the wind tunnel, with true
    tags, 89, 93 and 95 % of the planned questions could in truth be asked at 0.3, 0.5 and 0.7 (by chance 24 %); less
    leaves more choice where a tree has few tags for each type."""
    top_k: int = 24
    """Most types that suit one image by its tags, best first: what the plan can choose from, at 8 bytes of memory."""
    shares: dict[str, float] = field(default_factory=dict)
    """Weight of a type's quota by path or beginning of a path (`ocr`, `chart/extreme`), the longest match wins;
    default 1, and 0 switches a type off. A sensitive type is on only if it is here with its whole path."""
    include_sensitive: bool = False
    """Whether all types that the tree marks as sensitive (`infinity-mm tree` shows them) are asked for as well."""

    def __post_init__(self) -> None:
        counts = (self.questions_per_image, self.num_seed_scenes, self.top_k)
        if min(counts) < 1 or not 0 <= self.min_fit <= 1:
            raise explain(
                what="questions_per_image, num_seed_scenes and top_k must be 1 or more, min_fit 0 to 1",
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
    """P1, second half: samples go through unchanged, their plan is a file beside them."""

    config: PlanConfig = field(default_factory=PlanConfig)
    seed: int
    """The run's seed; decides which examples are shown."""
    after: str = "tag"
    """The pass whose samples are read."""
    name: str = "plan"

    def fingerprint(self) -> str:
        """Configuration, tree, seeds."""
        seeds = self.config.seeds or ""
        content = hashlib.sha256(Path(seeds).read_bytes()).hexdigest() if os.path.isfile(seeds) else seeds
        config = canonical_json(to_plain(self.config))
        return digest(
            self.name, self.after, config, str(self.seed), Tree.load(self.config.tree).fingerprint, content
        )

    def units(self, run: Run) -> Sequence[Unit]:
        """One per unit before. The quotas look at all images here; a unit's payload says what became of its own."""
        manifest = run.manifest(self.after)
        assert manifest is not None, f"pass {self.name} runs after {self.after}"
        chosen = Planner(self.config, seed=self.seed).choose(
            run.unit_samples(self.after, unit) for unit in manifest.units
        )
        return [
            Unit(id=unit, payload={"types": types, "is_first": unit == manifest.units[0]})
            for unit, types in zip(manifest.units, chosen, strict=True)
        ]

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
        self._planner = Planner(pass_.config, seed=pass_.seed)

    async def run(self, unit: Unit) -> UnitResult:
        return await asyncio.to_thread(self._work, unit)

    def _work(self, unit: Unit) -> UnitResult:
        name, planner = self._pass.name, self._planner
        samples = self._run.unit_samples(self._pass.after, unit.id)
        plan = planner.plan(samples, unit.payload["types"])
        outcomes: list[Outcome] = [
            Emitted(sample=sample) if plan[sample.id] else _dropped(sample, name) for sample in samples
        ]
        ids = [sample.id for sample in samples]
        asked = Counter(entry["type"] for entries in plan.values() for entry in entries)
        planned = {id_: entries for id_, entries in plan.items() if entries}
        files = {PLAN_FILE: canonical_json(planned).encode()}
        metrics: dict[str, float] = {"images": len(samples), "questions_planned": asked.total()}
        if unit.payload["is_first"]:
            about = {"tree": planner.tree.name, "tree_version": planner.tree.version, **planner.gaps}
            files[MAPPING_FILE] = planner.mapping.to_json(about).encode()
            metrics |= {name: len(types) for name, types in planner.gaps.items()}
        return UnitResult(
            input_ids=ids,
            samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
            fates=settle(name, ids, outcomes),
            dropped=[
                {"id": o.id, "stage": o.stage, "reason": o.reason, "sample": o.sample}
                for o in outcomes
                if isinstance(o, Dropped)
            ],
            metrics=metrics | {f"planned.{type_}": asked[type_] for type_ in planner.types},
            files=files,
        )


@final
class Planner:
    """Tree, seeds and the mapping fitted on them; from samples to their plan in two steps."""

    def __init__(self, config: PlanConfig, *, seed: int, seeds: Sequence[Seed] | None = None) -> None:
        """`seeds`: instead of those that the configuration names."""
        self.tree = Tree.load(config.tree)
        if seeds is None:
            seeds = load_seeds(config.seeds, self.tree, num_scenes=config.num_seed_scenes)
        seeds = with_own_tags(seeds, self.tree)
        self.mapping = fit_mapping(seeds, self.tree.leaves, config.mapping)
        self._config, self._seed = config, seed
        self._shares = self.tree.shares(config.shares, include_sensitive=config.include_sensitive)
        self.types = tuple(path for path in self.tree.leaves if self._shares[path] > 0)
        """What may be asked, in the tree's order."""
        self._anywhere = [path for path in self.types if self.tree.leaves[path].any_image]
        self._pools = _example_pools(self.tree, seeds)
        from_tree = {seed.type for seed in seeds if seed.from_tree}
        never = (path for path in self.types if not self.mapping.weights[path])
        self.gaps = {
            "types_from_the_tree": [path for path in self.types if path in from_tree],
            "types_without_seeds": [path for path in never if not self.tree.leaves[path].any_image],
        }
        """Types that the mapping knows by their own tags alone, and types that it gives to no image."""

    def choose(self, units: Iterable[Sequence[Sample]]) -> list[str]:
        """For each unit what `plan` takes: the types of its samples, as text, a few bytes a question."""
        candidates = Candidates(self.types)
        sizes: list[int] = []
        for samples in units:
            candidates.add(
                {
                    sample.id: self.suitable(sample.tags or (), num_images=len(sample.images))
                    for sample in samples
                }
            )
            sizes.append(len(samples))
        rows = candidates.assign(per_image=self._config.questions_per_image, shares=self._shares)
        ends = np.cumsum(sizes, dtype=np.int64)[:-1]
        parts = np.split(rows.astype("<u2", copy=False), ends) if sizes else []
        return [base64.b64encode(part.tobytes()).decode() for part in parts]

    def suitable(self, tags: Sequence[Tag], *, num_images: int = 1) -> dict[str, float]:
        """The types that suit an image, or several together, with scores."""
        scores = {type_: s for type_, s in self.mapping.score(tags).items() if self._shares[type_] > 0}
        if num_images > 1:
            scores = {t: s for t, s in scores.items() if not self.tree.leaves[t].needs_one_image}
        least = self._config.min_fit * max(scores.values(), default=0.0)
        fitting = [(type_, score) for type_, score in scores.items() if score >= least][: self._config.top_k]
        # What suits any image comes after what its tags speak for; without tags it is all there is.
        anywhere = [t for t in self._anywhere if num_images == 1 or not self.tree.leaves[t].needs_one_image]
        return dict.fromkeys(anywhere, least or 1.0) | dict(fitting)

    def plan(self, samples: Sequence[Sample], types: str) -> dict[str, list[dict[str, Any]]]:
        """Sample id -> its questions to be, from `choose`; an empty list where no type suits the image."""
        rows = np.frombuffer(base64.b64decode(types), "<u2").reshape(-1, self._config.questions_per_image)
        return {
            sample.id: [self._entry(sample, self.types[number]) for number in row if number != NONE]
            for sample, row in zip(samples, rows.tolist(), strict=True)
        }

    def _entry(self, sample: Sample, type_: str) -> dict[str, Any]:
        rng = rng_for(self._seed, "plan", f"{sample.id}/{type_}")
        return {
            "type": type_,
            "examples": rng.sample(self._pools[type_], 2),
            "styles": list(self.tree.leaves[type_].styles),
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
