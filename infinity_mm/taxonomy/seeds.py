"""Seed data for the mapping: which tags images had about which a type of question was asked.

wind tunnel: training scenes -> (tags of the scene, type, question)
JSONL file:  {"tags": [...], "type": "category/group/type" or an alias, "question": "..."}; `label-seeds` writes such
tree:        the typical tags written at each type
                                    \\--with_own_tags--> a seed for every type that has tags
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.taxonomy.json_lines import bad_row, read_rows, strings
from infinity_mm.taxonomy.mapping import Seed
from infinity_mm.taxonomy.tree import Tree

SEED_WORLD = 4
"""World of the seed scenes; only its training side is used, so nothing held out is looked at."""
_FORM = '{"tags": ["..."], "type": "category/group/type", "question": "..."}'


def load_seeds(name: str | None, tree: Tree, *, num_scenes: int) -> list[Seed]:
    """Seeds by name (`windtunnel`, `tree`) or from the JSONL file at a path; None: those that go with the tree.

    Raises `UserError` if there are none of a type of the tree: every image would get the same few types.
    """
    name = name or ("windtunnel" if tree.name == "windtunnel" else "tree")
    if name == "tree":
        return with_own_tags([], tree)
    seeds = list(_windtunnel(num_scenes) if name == "windtunnel" else _file(Path(name), tree))
    if not any(seed.type in tree.leaves for seed in seeds):
        raise explain(
            what=f"none of the {len(seeds)} seeds `{name}` is of a type of the tree `{tree.name}`",
            where="plan.seeds (configuration)",
            fix="leave plan.seeds out to learn from the tags of the tree's types, or give seeds of its types",
        )
    return seeds


def with_own_tags(seeds: Sequence[Seed], tree: Tree) -> list[Seed]:
    """The seeds, and the typical tags of each type that has none of them: what nobody asked before is not starved."""
    seeded = {seed.type for seed in seeds}
    own = [
        Seed(tags=leaf.tags, type=path, from_tree=True)
        for path, leaf in tree.leaves.items()
        if leaf.tags and path not in seeded
    ]
    return [*seeds, *own]


def _windtunnel(num_scenes: int) -> Iterator[Seed]:
    """One question of every type that a scene can answer."""
    from infinity_mm.windtunnel import questions, world
    from infinity_mm.windtunnel.tags import tags

    for index in range(num_scenes):
        scene = world.sample_scene(world_seed=SEED_WORLD, index=index, split="train")
        for type_ in questions.types_for(scene):
            asked = questions.questions(scene, random.Random(index), type=type_, n=1)
            yield Seed(tags=tags(scene), type=type_, question=asked[0].text if asked else None)


def _file(file: Path, tree: Tree) -> Iterator[Seed]:
    for where, row in read_rows(file, form=_FORM):
        label, question = row.get("type"), row.get("question")
        tags = strings(row, "tags", where=where, form=_FORM)
        if not isinstance(label, str):
            raise bad_row("`type` is no string", where=where, form=_FORM)
        type_ = label if label in tree.leaves else tree.find(label)
        if type_ is None:
            raise explain(
                what=f"the tree `{tree.name}` has no type `{label}`",
                where=where,
                fix="use a type of the tree, or an alias of one",
            )
        yield Seed(tags=tags, type=type_, question=question if isinstance(question, str) else None)
