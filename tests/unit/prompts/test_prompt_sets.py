from __future__ import annotations

import re
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.verify import has_answer_mark, main_script

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


@pytest.mark.parametrize("name", ["nano", "default", "chinese"])
def test_all_sets_take_the_same_fields(name: str) -> None:
    prompts = PromptSet.load(name)
    for prompt, fields in FIELDS.items():
        text = prompts.render(prompt, **{field: f"<{field}>" for field in fields})
        assert all(f"<{field}>" in text for field in fields)
        assert "$" not in text


def test_the_chinese_set_has_the_prompts_and_fields_of_the_default_set() -> None:
    fields = [
        {
            prompt: set(re.findall(r"\$[a-z0-9_]+", text))
            for prompt, text in PromptSet.load(name).texts.items()
        }
        for name in ("default", "chinese")
    ]
    assert fields[0] == fields[1]


def test_a_set_says_its_language() -> None:
    languages = {name: PromptSet.load(name).language for name in ("nano", "default", "chinese")}
    assert languages == {"nano": "en", "default": "en", "chinese": "zh"}


def test_the_language_of_a_folder_is_open_unless_it_says_one(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("Frage?")
    assert PromptSet.load(str(tmp_path)).language is None
    (tmp_path / "set.yaml").write_text("language: zh")
    assert PromptSet.load(str(tmp_path)).language == "zh"
    (tmp_path / "set.yaml").write_text("language: de")
    with pytest.raises(UserError, match="one of 'en', 'zh'"):
        PromptSet.load(str(tmp_path))


def test_the_language_is_part_of_a_sets_fingerprint() -> None:
    sets = [PromptSet(name="mine", texts={"ask": "?"}, language=language) for language in (None, "en", "zh")]
    assert len({prompts.fingerprint for prompts in sets}) == 3


def test_the_chinese_set_speaks_chinese_but_keeps_the_words_that_code_reads() -> None:
    prompts = PromptSet.load("chinese")
    bare = {name: re.sub(r"\$[a-z0-9_]+", "", text) for name, text in prompts.texts.items()}
    assert all(main_script(text) == "CJK" for text in bare.values())
    assert "NONE" in prompts.text("ask")
    assert {"yes", "no"} <= set(re.findall("[a-z]+", prompts.text("check")))
    assert has_answer_mark("图中有两只狗。\n答案\uff1a两只")
    assert all("答案\uff1a" in prompts.text(f"answer_{style}") for style in ("brief", "detailed"))


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
    with pytest.raises(UserError, match="chinese, default, nano"):
        PromptSet.load("nanoo")
