"""Seed data for the mapping: which tags images had about which a type of question was asked.

wind tunnel: training scenes -> (tags of the scene, type, question)
JSONL file:  {"tags": [...], "type": "category/group/type" or an alias, "question": "..."}; `label-seeds` writes such
tree:        the typical tags written at each type
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.taxonomy.json_lines import bad_row, read_rows, strings
from infinity_mm.taxonomy.mapping import Seed
from infinity_mm.taxonomy.tree import Tree

SEED_WORLD = 4
"""World of the seed scenes; only its training side is used, so nothing held out is looked at."""
_FORM = '{"tags": ["..."], "type": "category/group/type", "question": "..."}'


def load_seeds(name: str, tree: Tree, *, num_scenes: int) -> list[Seed]:
    """Seeds by name (`windtunnel`, `tree`) or from the JSONL file at a path."""
    if name == "windtunnel":
        return list(_windtunnel(num_scenes))
    if name == "tree":
        return [Seed(tags=leaf.tags, type=path) for path, leaf in tree.leaves.items() if leaf.tags]
    return list(_file(Path(name), tree))


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
