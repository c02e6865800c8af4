"""What quotas and TF-IDF are worth: which types of question a plan asks for, and whether they can be asked in truth.

    python benchmarks/coverage.py                 1,000 held-out drawn scenes, tagged by nano-clip
    python benchmarks/coverage.py --true-tags     with the scenes' own tags: the tagger's mistakes left out

Four plans for the same images, each with as many questions: with TF-IDF or with types drawn by chance, and with quotas
or without, where every image takes what suits it best. For each: how evenly the questions spread over the types
(entropy over that of an even spread), types without a question, the questions of the rarest tenth of types, and the
share of questions that the drawn scene can in truth be asked.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infinity_mm.record import Tag
from infinity_mm.taxonomy.clip_tagger import ClipTagger
from infinity_mm.taxonomy.plan_pass import PlanConfig, Planner
from infinity_mm.taxonomy.quotas import NONE, Candidates
from infinity_mm.taxonomy.tagger import TaggerConfig, choose_tags
from infinity_mm.windtunnel import questions, world
from infinity_mm.windtunnel.tags import tags as true_tags

Suits = Mapping[str, Mapping[str, float]]
"""Image -> type -> how well it suits."""


@dataclass(frozen=True)
class Row:
    """One plan."""

    name: str
    evenness: float
    without: int
    rare: float
    askable: float
    num_questions: int

    def __str__(self) -> str:
        return (
            f"{self.name:<28}{self.evenness:>9.1%}{self.without:>16}{self.rare:>14.2%}"
            f"{self.askable:>12.1%}{self.num_questions:>11,}"
        )


def with_quotas(suits: Suits, types: Sequence[str], per_image: int) -> dict[str, list[str]]:
    """The emptiest type takes the image that it suits best."""
    candidates = Candidates(types)
    candidates.add(suits)
    rows = candidates.assign(per_image=per_image, shares=dict.fromkeys(types, 1.0))
    chosen: list[list[int]] = rows.tolist()
    return {image: [types[n] for n in row if n != NONE] for image, row in zip(suits, chosen, strict=True)}


def without_quotas(suits: Suits, types: Sequence[str], per_image: int) -> dict[str, list[str]]:
    """Each image takes the types that suit it best."""
    return {
        image: sorted(scores, key=lambda type_: (-scores[type_], type_))[:per_image]
        for image, scores in suits.items()
    }


def measure(
    name: str, plan: Mapping[str, Sequence[str]], askable: Mapping[str, set[str]], types: Sequence[str]
) -> Row:
    """Spread over types, and truth."""
    asked = Counter(type_ for chosen in plan.values() for type_ in chosen)
    total = asked.total()
    entropy = -sum(n / total * math.log(n / total) for n in asked.values())
    rarest = sorted(asked[type_] for type_ in types)[: max(1, len(types) // 10)]
    right = sum(type_ in askable[image] for image, chosen in plan.items() for type_ in chosen)
    return Row(
        name=name,
        evenness=entropy / math.log(len(types)),
        without=sum(not asked[type_] for type_ in types),
        rare=sum(rarest) / total,
        askable=right / total,
        num_questions=total,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--per-image", type=int, default=4, help="questions per image")
    parser.add_argument("--true-tags", action="store_true", help="instead of those of nano-clip")
    args = parser.parse_args()
    start = time.monotonic()
    scenes = [world.sample_scene(world_seed=1, index=i, split="held_out") for i in range(args.images)]
    ids = [f"{number:06d}" for number in range(len(scenes))]
    if args.true_tags:
        tags = [tuple(Tag(name=name, score=1.0) for name in true_tags(scene)) for scene in scenes]
    else:
        config = TaggerConfig()
        tagger = ClipTagger(config)
        tags = [choose_tags(tagger.scores([world.render(scene)])[0], config) for scene in scenes]
    planner = Planner(PlanConfig(), seed=0)
    types = planner.types
    askable = {id_: set(questions.types_for(scene)) for id_, scene in zip(ids, scenes)}
    fitted = {id_: planner.suitable(found) for id_, found in zip(ids, tags)}
    rng = random.Random(0)
    by_chance = {id_: {type_: rng.random() for type_ in types} for id_ in ids}
    told = "true tags" if args.true_tags else "tags of nano-clip"
    print(f"{args.images} scenes, {len(types)} types, {args.per_image} questions an image; {told}")
    print(f"{'':<28}{'evenness':>9}{'types without':>16}{'rarest tenth':>14}{'askable':>12}{'questions':>11}")
    for name, suits, assign in (
        ("TF-IDF and quotas", fitted, with_quotas),
        ("TF-IDF without quotas", fitted, without_quotas),
        ("types by chance, quotas", by_chance, with_quotas),
        ("types by chance", by_chance, without_quotas),
    ):
        print(measure(name, assign(suits, types, args.per_image), askable, types))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
