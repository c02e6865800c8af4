"""Seed data for the mapping: which tags images had about which a type of question was asked.

wind tunnel: training scenes -> (tags of the scene, type, question)
JSONL file:  {"tags": [...], "type": "category/group/type", "question": "..."}
tree:        the typical tags written at each type
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.taxonomy.mapping import Seed
from infinity_mm.taxonomy.tree import Tree

SEED_WORLD = 4
"""World of the seed scenes; only its training side is used, so nothing held out is looked at."""


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
    if not file.is_file():
        raise explain(
            what=f"there are no seeds `{file}`",
            where="plan.seeds (configuration)",
            fix="use windtunnel, tree, or the path of a JSONL file",
        )
    # Not splitlines(): it also splits at U+2028, which JSON allows inside a string.
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
            tags, type_, question = tuple(row["tags"]), row["type"], row.get("question")
        except (ValueError, KeyError, TypeError) as error:
            raise explain(
                what=f"not a seed: {type(error).__name__}: {error}",
                where=where,
                fix='write {"tags": ["..."], "type": "category/group/type", "question": "..."}',
            ) from error
        if type_ not in tree.leaves:
            raise explain(
                what=f"the tree `{tree.name}` has no type `{type_}`",
                where=where,
                fix="use a type of the tree",
            )
        yield Seed(tags=tags, type=type_, question=question)
