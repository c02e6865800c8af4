from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.errors import UserError

FLAT = """\
name: mine
version: 7
types:
  - name: fine/count
    definition: Count the things of one kind.
    examples: ["How many dogs are there?", "How many chairs can you see?"]
  - name: fine/age
    definition: Estimate an age.
    shows: One face.
    examples: ["How old is the man?", "Is the girl under ten?"]
    styles: [short]
    sensitive: true
    tags: [face]
"""


def test_the_command_prints_every_type_of_a_file_under_its_section_with_counts(tmp_path: Path) -> None:
    (tmp_path / "tree.yaml").write_text(FLAT)
    done = CliRunner().invoke(app, ["tree", str(tmp_path / "tree.yaml")], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    lines = [line.strip(" │├└─") for line in done.output.splitlines()]
    assert lines[0].startswith("mine, version 7: ")
    assert lines[1:] == [
        "fine (2)",
        "count (any image) Count the things of one kind.",
        "age (sensitive) Estimate an age. The image must show: One face.",
        "2 types in 0 groups of 1 categories; 1 tags",
        "styles: 2 short, 1 brief, 1 detailed",
        "for any image: 1; sensitive, off until asked for: 1",
    ]


def test_the_command_gives_the_default_tree_as_json() -> None:
    shown = json.loads(CliRunner().invoke(app, ["tree", "--json"]).output)
    assert (shown["num_categories"], shown["num_groups"], shown["num_types"]) == (6, 27, 216)
    assert shown["types"]["fine_cross/counting/count_kind"] == "Count the things of one kind."
    assert "attribute/identity/medical_condition" in shown["sensitive"]


def test_the_command_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "tree.yaml").write_text(FLAT.replace("fine/age", "fine/other"))
    done = CliRunner().invoke(app, ["tree", str(tmp_path / "tree.yaml")])
    assert isinstance(done.exception, UserError)
    assert "catch-all" in str(done.exception)
