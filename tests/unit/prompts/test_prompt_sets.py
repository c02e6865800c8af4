from __future__ import annotations

import re

import pytest

from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet

FIELDS = {
    "ask": {"type", "example_1", "example_2"},
    "check": {"question"},
    "answer_short": {"question"},
    "answer_brief": {"question"},
    "answer_detailed": {"question"},
    "judge": {"question", "answer"},
    "rewrite": {"question", "answer"},
    "caption_short": set(),
    "caption_dense": set(),
}


@pytest.mark.parametrize("name", ["nano", "default"])
def test_both_sets_take_the_same_fields(name: str) -> None:
    prompts = PromptSet.load(name)
    for prompt, fields in FIELDS.items():
        text = prompts.render(prompt, **{field: f"<{field}>" for field in fields})
        assert all(f"<{field}>" in text for field in fields)
        assert "$" not in text


def test_the_default_set_has_a_system_prompt_and_the_nano_set_has_none() -> None:
    assert PromptSet.load("default").system
    assert PromptSet.load("nano").system == ""


@pytest.mark.parametrize("style", ["short", "brief", "detailed"])
def test_an_answer_prompt_begins_with_the_question_because_a_student_is_trained_on_it(style: str) -> None:
    lines = PromptSet.load("default").render(f"answer_{style}", question="How many?").splitlines()
    assert lines[0] == "How many?"
    assert len(lines) == 2


def test_explained_answers_are_asked_for_with_an_answer_line() -> None:
    prompts = PromptSet.load("default")
    assert all(re.search('"Answer:"', prompts.text(f"answer_{style}")) for style in ("brief", "detailed"))


def test_a_dollar_in_a_question_is_left_alone() -> None:
    text = PromptSet.load("nano").render("answer_short", question="Is it $price or $question?")
    assert text.startswith("Is it $price or $question?")


def test_a_set_is_any_folder_and_an_unknown_one_names_those_that_ship(tmp_path: object) -> None:
    with pytest.raises(UserError, match="default, nano"):
        PromptSet.load("nanoo")
