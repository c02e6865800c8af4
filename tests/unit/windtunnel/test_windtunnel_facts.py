"""Lists of facts: what they hold is true, complete over many draws, and never ambiguous."""

import random
from collections import defaultdict

import pytest

from infinity_mm.windtunnel import world
from infinity_mm.windtunnel.facts import NUM_FACTS, facts
from infinity_mm.windtunnel.scene import (
    Bar,
    ChartFacts,
    Cosmetic,
    DocumentFacts,
    Line,
    Row,
    Scene,
    ShapesFacts,
    TableFacts,
    Thing,
)


def all_facts(family: str, of: object) -> set[str]:
    """What a hundred lists say between them, sentence by sentence."""
    scene = Scene(family=family, width=64, height=64, facts=of, cosmetic=Cosmetic(seed=0, font_px=10))  # pyright: ignore
    lists = [facts(scene, random.Random(seed)) for seed in range(100)]
    return {sentence for told in lists for sentence in told.removesuffix(".").split(". ")}


def test_the_facts_of_a_chart() -> None:
    bars = (Bar(label="Tea", value=3, color="red"), Bar(label="Egg", value=8, color="blue"))
    assert all_facts("chart", ChartFacts(bars=bars, title="")) == {
        "bars: 2", "title: none",
        "value of Tea: 3", "color of Tea: red", "red bar: Tea", "value of red: 3",
        "value of Egg: 8", "color of Egg: blue", "blue bar: Egg", "value of blue: 8",
        "highest: Egg", "lowest: Tea", "Tea or Egg, higher: Egg", "Egg or Tea, higher: Egg",
        "Tea plus Egg: 11", "Egg plus Tea: 11", "Egg minus Tea: 5",
    }  # fmt: skip


def test_the_facts_of_a_table_leave_out_an_extreme_that_two_rows_share() -> None:
    rows = (Row(item="Fig", numbers=(4,)), Row(item="Ham", numbers=(4,)))
    assert all_facts("table", TableFacts(headers=("Item", "Qty"), rows=rows)) == {
        "rows: 2", "columns: 2", "column 1: Item", "column 2: Qty", "Item in column: 1", "Qty in column: 2",
        "row 1: Fig", "row 2: Ham", "Fig in row: 1", "Ham in row: 2", "Qty of Fig: 4", "Qty of Ham: 4",
    }  # fmt: skip


def test_the_facts_of_a_form() -> None:
    lines = (Line(label="Name", value="Ana"), Line(label="Age", value="7"))
    assert all_facts("document", DocumentFacts(kind="form", background="", lines=lines)) == {
        "lines: 2", "line 1: Name: Ana", "line 2: Age: 7", "Ana in line: 1", "7 in line: 2",
        "value of Name: Ana", "value of Age: 7", "field of Ana: Name", "field of 7: Age",
        "Name in line: 1", "Age in line: 2",
    }  # fmt: skip


def test_two_things_of_one_name_have_no_facts_by_that_name() -> None:
    one = Thing(shape="star", color="red", size="small", row=0, column=0)
    two = Thing(shape="star", color="red", size="large", row=0, column=1)
    told = all_facts("shapes", ShapesFacts(things=(one, two)))
    assert {"objects: 2", "number of stars: 2", "number of red: 2", "number of small: 1"} <= told
    assert {"at the top left: red star", "at the top: red star", "red star: yes"} <= told
    assert not any(
        f"{what} of {name}:" in "".join(told) for what in ("place", "size") for name in ("red star", "star")
    )


@pytest.mark.parametrize("index", range(24))
def test_a_key_has_one_value_and_a_list_has_at_most_its_number_of_facts(index: int) -> None:
    scene = world.sample_scene(world_seed=2, index=index, split="train")
    values: dict[str, set[str]] = defaultdict(set)
    for seed in range(50):
        told = facts(scene, random.Random(seed)).removesuffix(".").split(". ")
        assert 1 <= len(told) <= NUM_FACTS
        for sentence in told:
            key, _, value = sentence.partition(": ")
            values[key].add(value)
    if scene.family != "document":  # two lines of a form may hold the same value
        assert {key for key, seen in values.items() if len(seen) > 1} == set()
