from __future__ import annotations

import re
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef, Sample
from infinity_mm.taxonomy.plan_pass import PlanConfig, Planner
from infinity_mm.taxonomy.tree import Tree

FLAT = """\
name: mine
types:
  - name: count
    definition: Count the things of one kind.
    examples: ["How many dogs are there?", "How many chairs can you see?"]
    share: 2
  - name: color
    definition: Name the color of one thing.
    examples: ["What color is the door?", "Which color has the car?"]
"""


def written(folder: Path, text: str, name: str = "tree.yaml") -> str:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return str(file)


def image(id_: str) -> Sample:
    return Sample(id=id_, images=(ImageRef(sha256=id_ * 64, uri="/x", width=64, height=64),), tags=())


def test_a_flat_list_plans_images_without_tags_by_its_shares(tmp_path: Path) -> None:
    planner = Planner(PlanConfig(tree=written(tmp_path, FLAT), questions_per_image=1), seed=0, seeds=[])
    assert planner.types == ("count", "color")
    samples = [image(id_) for id_ in "abcdef"]
    (chosen,) = planner.choose([samples])
    plan = planner.plan(samples, chosen)
    types = [entry["type"] for entries in plan.values() for entry in entries]
    assert sorted(types) == ["color"] * 2 + ["count"] * 4


def test_a_listed_type_with_tags_suits_images_with_these_tags_only(tmp_path: Path) -> None:
    leaves = Tree.load(written(tmp_path, FLAT + "    tags: [door]\n")).leaves
    assert {name: leaf.any_image for name, leaf in leaves.items()} == {"count": True, "color": False}


def test_a_tree_extends_another_by_adding_changing_and_removing(tmp_path: Path) -> None:
    text = """\
name: mine
version: 3
extends: default
remove: [logic/science, fine_single/recognition/fictional_character]
change:
  fine_single/recognition/animal: {styles: [short], share: 2}
types:
  - name: fine_single/traffic/lane_use
    definition: Say which lane a road user has to take.
    examples: ["Which lane leads to the airport?", "May the cyclist use the left lane?"]
    tags: [road, road marking]
"""
    tree, base = Tree.load(written(tmp_path, text)), Tree.load("default")
    gone = {path for path in base.leaves if path.startswith("logic/science/")}
    gone.add("fine_single/recognition/fictional_character")
    assert set(tree.leaves) == (set(base.leaves) - gone) | {"fine_single/traffic/lane_use"}
    assert set(base.sections) - set(tree.sections) == {"logic/science"}
    changed = tree.leaves["fine_single/recognition/animal"]
    assert (changed.styles, changed.share) == (("short",), 2.0)
    assert changed.examples == base.leaves["fine_single/recognition/animal"].examples
    assert (tree.name, tree.version, tree.vocabulary) == ("mine", "3", "general")


def test_an_extended_tree_may_be_a_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path, FLAT, "base.yaml")
    tree = Tree.load(written(tmp_path, "name: less\nextends: base.yaml\nremove: [color]\n"))
    assert list(tree.leaves) == ["count"]


def test_a_tree_can_be_cut_into_parts(tmp_path: Path) -> None:
    part = """\
categories:
  c:
    definition: d
    groups:
      g:
        definition: e
        types:
          t: {definition: Name it., examples: ["One?", "Two?"]}
"""
    written(tmp_path, part, "parts/c.yaml")
    tree = Tree.load(written(tmp_path, "name: n\nparts: [parts/c.yaml]\n"))
    assert list(tree.leaves) == ["c/g/t"]
    assert tree.sections == {"c": "d", "c/g": "e"}
    written(tmp_path, part, "more.yaml")
    with pytest.raises(UserError, match="category `c` is there already"):
        Tree.load(written(tmp_path, "name: n\nparts: [parts/c.yaml, more.yaml]\n"))


def test_the_trees_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "taxonomy.md").read_text()
    flat, extended = re.findall(r"```yaml\n(# my_.+?)```", page, re.DOTALL)
    assert list(Tree.load(written(tmp_path, flat)).leaves) == ["count", "damage"]
    tree = Tree.load(written(tmp_path, extended))
    assert "fine_single/traffic/lane_use" in tree.leaves
    assert not {"logic/science", "coarse_perception/mood"} & set(tree.sections)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: n\nextends: default\nremove: [logic/sience]\n", "did you mean `logic/science`"),
        (
            "name: n\nextends: default\nchange: {fine_single/recognition/animals: {share: 2}}\n",
            "did you mean `fine_single/recognition/animal`",
        ),
        (
            "name: n\nextends: default\nchange: {fine_single/recognition/animal: {shar: 2}}\n",
            "unknown key `shar`",
        ),
        ("name: n\nextends: tree.yaml\n", "extends itself"),
        ("name: n\nextends: nowhere\n", "no instruction tree `nowhere`"),
        ("name: n\nparts: [gone.yaml]\n", "there is no file"),
        ("name: n\n", "no instruction types"),
        (FLAT.replace("- name: count", "- nme: count"), "a type has no name"),
        (FLAT + FLAT.partition("types:\n")[2], "there is a type `count` already"),
        (FLAT.replace("    definition: Count the things of one kind.\n", ""), "`definition` is required"),
    ],
)
def test_a_faulty_file_is_refused_with_the_fix(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tree.load(written(tmp_path, text))
