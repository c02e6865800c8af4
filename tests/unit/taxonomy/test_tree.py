from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from infinity_mm.dedup.text import QuestionIndex, meaning
from infinity_mm.engines.base import Reply
from infinity_mm.errors import UserError
from infinity_mm.synth.ask import AskConfig, read_question
from infinity_mm.taxonomy.tree import InstructionType, Tree, share_of
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


def test_the_default_tree_has_the_six_categories_and_about_two_hundred_types_under_different_names() -> None:
    tree = Tree.load("default")
    assert [section for section in tree.sections if "/" not in section] == [
        "coarse_perception",
        "fine_single",
        "fine_cross",
        "relation",
        "attribute",
        "logic",
    ]
    assert len(tree.leaves) == 216
    names = [path.rpartition("/")[2] for path in tree.leaves]
    assert len(set(names)) == len(names)
    assert all(path.count("/") == 2 and path.rpartition("/")[0] in tree.sections for path in tree.leaves)


def test_every_default_type_has_tags_of_the_general_vocabulary_and_can_be_answered_without_options() -> None:
    tree = Tree.load("default")
    assert tree.vocabulary == "general"  # which checks the tags
    for path, leaf in tree.leaves.items():
        assert len(leaf.tags) >= 5, path
        assert len(set(leaf.tags)) == len(leaf.tags), path
        assert set(leaf.styles) - {"choice"}, path


TEXTS = (
    "story", "fields_to_json", "chart_to_data", "chart_summary", "full_description", "one_sentence", "title",
    "keywords", "transcription", "document_summary", "instruction", "advice",
)  # fmt: skip


def test_what_asks_for_a_text_or_a_list_may_be_answered_with_it_alone() -> None:
    styles = {path.rpartition("/")[2]: leaf.styles for path, leaf in Tree.load("default").leaves.items()}
    assert [name for name in TEXTS if "full" not in styles[name]] == []
    assert Tree.load("any_picture").leaves["coarse_perception/summary/caption"].styles == ("full",)


def test_no_two_examples_of_the_default_tree_are_the_same_question() -> None:
    index = QuestionIndex()
    examples = [example for leaf in Tree.load("default").leaves.values() for example in leaf.examples]
    assert [example for example in examples if index.add(example, example)] == []
    bags = [frozenset(meaning(example)) for example in examples]
    assert [(a, b) for a, b in combinations(bags, 2) if len(a & b) >= 0.8 * len(a | b)] == []


@pytest.mark.parametrize("name", ["default", "any_picture", "windtunnel"])
def test_every_example_would_be_taken_for_a_question_if_a_teacher_wrote_it(name: str) -> None:
    config = AskConfig(min_chars=4)
    for leaf in Tree.load(name).leaves.values():
        for example in leaf.examples:
            assert read_question(Reply(text=example), examples=(), config=config) == example


def test_the_general_vocabulary_has_two_thousand_tags_none_of_them_twice_or_in_the_plural() -> None:
    tags = load_vocabulary("general")
    assert len(tags) >= 2000
    lower = {tag.lower() for tag in tags}
    assert len(lower) == len(tags)
    plurals = {form for tag in lower for form in (f"{tag}s", f"{tag}es", f"{tag.removesuffix('y')}ies")}
    assert lower & plurals == set()


def test_the_wind_tunnels_vocabulary_file_is_that_of_the_wind_tunnel() -> None:
    assert load_vocabulary("windtunnel") == tags.VOCABULARY


LEAF = {"definition": "Name it.", "shows": "s", "styles": ["short"], "examples": ["One?", "Two?"]}
OTHER = {**LEAF, "definition": "Count them.", "examples": ["Three?", "Four?"]}


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
        (
            {**LEAF, "styles": ["short", "choice"], "examples": ["Is it red?", "Can it fly?"]},
            "`c/g/t0` has the style choice, and both examples are answered by yes or no",
        ),
        ({**LEAF, "share": -1}, "has the share -1"),
    ],
)
def test_a_faulty_leaf_is_refused_with_its_path(tmp_path: Path, leaf: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tree.load(tree_file(tmp_path, leaf))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**OTHER, "examples": ["one", "Four?"]}, "`c/g/t1` and `c/g/t0` share the example `one`"),
        ({**OTHER, "definition": "Please name it!"}, "`c/g/t0` and `c/g/t1` are defined alike"),
        ({**OTHER, "aliases": ["T0"]}, "`c/g/t1` and `c/g/t0` share the name `T0`"),
    ],
)
def test_two_types_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    Tree.load(tree_file(tmp_path, LEAF, OTHER))
    with pytest.raises(UserError, match=message):
        Tree.load(tree_file(tmp_path, LEAF, other))


def test_two_types_cannot_share_an_alias(tmp_path: Path) -> None:
    leaves = ({**LEAF, "aliases": ["counting"]}, {**OTHER, "aliases": ["Counting"]})
    with pytest.raises(UserError, match="share the name `Counting`"):
        Tree.load(tree_file(tmp_path, *leaves))


@pytest.mark.parametrize("name", ["other", "misc", "other_text", "rest/color", "a//b", " a"])
def test_catch_alls_and_broken_paths_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"catch-all|is no path"):
        Tree(name="n", leaves={name: InstructionType(definition="Name it.", examples=("One?", "Two?"))})


def test_a_tag_outside_the_trees_vocabulary_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    listed = {"name": "kind", "definition": "Name it.", "examples": ["One?", "Two?"], "tags": ["dgo"]}
    file.write_text(yaml.safe_dump({"name": "n", "vocabulary": "general", "types": [listed]}))
    with pytest.raises(UserError, match="`kind` has the tag `dgo`, which is not in the vocabulary `general`"):
        Tree.load(str(file))


def test_a_type_is_found_by_path_name_and_alias() -> None:
    tree = Tree.load("default")
    for label in ("fine_single/text/clock_time", "clock_time", "Clock time", "clock reading"):
        assert tree.find(label) == "fine_single/text/clock_time"
    assert tree.find("no such type") is None


def test_a_name_that_two_groups_have_finds_neither() -> None:
    leaf, other = (InstructionType(definition=d, examples=(f"{d} A?", f"{d} B?")) for d in ("Count", "Name"))
    tree = Tree(name="n", leaves={"a/color": leaf, "b/color": other})
    assert (tree.find("color"), tree.find("b/color")) == (None, "b/color")


def test_the_version_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    file = Path(tree_file(tmp_path, LEAF))
    first = Tree.load(str(file))
    file.write_text(file.read_text() + "version: 2\n")
    second = Tree.load(str(file))
    assert (first.version, second.version) == ("1", "2")
    assert first.leaves == second.leaves
    assert first.fingerprint != second.fingerprint


OCCUPATION = "attribute/identity/occupation"


def test_sensitive_types_are_off_until_asked_for_by_path_or_all_together() -> None:
    tree = Tree.load("default")
    sensitive = {path for path, leaf in tree.leaves.items() if leaf.sensitive}
    assert {OCCUPATION, "attribute/identity/medical_condition"} < sensitive
    off = {path for path, share in tree.shares({"attribute": 2.0}).items() if share == 0}
    assert off == sensitive
    assert tree.shares({OCCUPATION: 0.5})[OCCUPATION] == 0.5
    assert min(tree.shares({}, include_sensitive=True).values()) == 1.0


def test_a_share_that_names_nothing_is_an_error_with_the_nearest_path() -> None:
    with pytest.raises(UserError, match="did you mean `logic/chart`"):
        Tree.load("default").shares({"logic/charts": 2.0})


def test_the_longest_beginning_of_a_path_decides_its_share() -> None:
    assert share_of("chart/extreme/lowest", {"chart": 2.0, "chart/extreme": 3.0}) == 3.0
    assert share_of("ocr/text/title", {"chart": 2.0}) == 1.0


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
