from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from infinity_mm.errors import UserError
from infinity_mm.taxonomy.tree import Tree
from infinity_mm.taxonomy.vocabulary import load_vocabulary
from infinity_mm.windtunnel import tags
from infinity_mm.windtunnel.questions import TYPES
from infinity_mm.windtunnel.wording import parse


def test_the_wind_tunnels_tree_has_exactly_the_types_that_it_can_answer() -> None:
    assert set(Tree.load("windtunnel").leaves) == set(TYPES)


def test_every_example_of_the_wind_tunnel_is_understood_as_its_own_type() -> None:
    for path, leaf in Tree.load("windtunnel").leaves.items():
        for example in leaf.examples:
            query = parse(example)
            assert query is not None, example
            assert query.type == path


def test_the_default_tree_has_the_six_categories_and_tags_that_are_in_the_vocabulary() -> None:
    tree = Tree.load("default")
    assert list(tree.categories) == [
        "coarse_perception",
        "fine_single",
        "fine_cross",
        "relation",
        "attribute",
        "logic",
    ]
    assert len(tree.leaves) >= 35
    known = set(load_vocabulary("general"))
    for path, leaf in tree.leaves.items():
        assert len(leaf.tags) >= 5, path
        assert set(leaf.tags) <= known, path


def test_the_wind_tunnels_vocabulary_file_is_that_of_the_wind_tunnel() -> None:
    assert load_vocabulary("windtunnel") == tags.VOCABULARY


LEAF = {"definition": "d", "shows": "s", "styles": ["short"], "examples": ["One?", "Two?"]}


def tree_file(tmp_path: Path, *leaves: dict[str, Any]) -> str:
    types = {f"t{number}": leaf for number, leaf in enumerate(leaves)}
    groups = {"g": {"definition": "d", "types": types}}
    file = tmp_path / "tree.yaml"
    file.write_text(yaml.safe_dump({"name": "n", "categories": {"c": {"definition": "d", "groups": groups}}}))
    return str(file)


def test_a_tree_can_be_read_from_any_file(tmp_path: Path) -> None:
    assert list(Tree.load(tree_file(tmp_path, LEAF)).leaves) == ["c/g/t0"]


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({**LEAF, "exmples": []}, "unknown key `categories.c.groups.g.types.t0.exmples`"),
        ({**LEAF, "examples": ["One?"]}, "a list of 2 values"),
        ({**LEAF, "examples": ["One?", "One?"]}, "needs two different examples"),
        ({**LEAF, "examples": ["One?", " "]}, "needs two different examples"),
        ({**LEAF, "styles": []}, "allows no answer style"),
        ({**LEAF, "styles": ["long"]}, "one of 'short', 'brief', 'detailed'"),
        ({**LEAF, "shows": " "}, "empty shows"),
    ],
)
def test_a_faulty_leaf_is_refused_with_its_path(tmp_path: Path, leaf: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tree.load(tree_file(tmp_path, leaf))


def test_two_types_cannot_share_an_example(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`c/g/t1` and `c/g/t0` share the example `One\\?`"):
        Tree.load(tree_file(tmp_path, LEAF, {**LEAF, "examples": ["One?", "Three?"]}))


def test_a_type_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(
        "name: n\ncategories:\n  c: {definition: d, groups: {}}\n  c: {definition: d, groups: {}}\n"
    )
    with pytest.raises(UserError, match="key `c` is given twice"):
        Tree.load(str(file))


def test_an_unknown_tree_or_vocabulary_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="windtunnel, default"):
        Tree.load("nothing")
    with pytest.raises(UserError, match="windtunnel, general"):
        load_vocabulary("nothing")


def test_a_tag_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("duck # a bird\n\n# birds\nduck\n")
    with pytest.raises(UserError, match="`duck` is there twice"):
        load_vocabulary(str(file))
