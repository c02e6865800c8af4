from __future__ import annotations

import pytest

from infinity_mm.errors import UserError
from infinity_mm.quality.phrases import is_loop, is_refusal, main_script, talks_about_the_task
from infinity_mm.quality.verify import VerifyConfig, edit_ratio, rewrite_fault

CONFIG = VerifyConfig()
LONG = "There are two red circles left of the square. Answer: two"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("red", "blue", None),
        (LONG, LONG.replace("two", "three"), None),
        ("red", "red", "rewrite_unchanged"),
        ("red", " red\n", "rewrite_unchanged"),
        ("red", "Red", None),
        ("red", "Here is the corrected answer: blue", "rewrite_talks_about_the_task"),
        (LONG, LONG.partition(" Answer")[0], "rewrite_changed_format"),
        (LONG, LONG.replace(" Answer", "\nAnswer").replace("two", "three"), None),
        ("There are two.", "There are three.\nAnswer: three", "rewrite_changed_format"),
        ("two red circles", "两个红色的圆圈", "rewrite_changed_language"),
        ("red", "a very long story of how the circle came to be", "rewrite_too_long"),
        (LONG, "Nothing in this drawing looks like any such thing. Answer: none", "rewrite_not_an_edit"),
        ("3", "4", None),
    ],
)
def test_a_rewrite_is_an_edit_or_the_fault_is_named(old: str, new: str, fault: str | None) -> None:
    assert rewrite_fault(old, new, CONFIG) == fault


def test_the_edit_ratio_counts_words() -> None:
    assert edit_ratio("a b c d", "a b c d") == 0.0
    assert edit_ratio("a b c d", "a b c x") == 0.25
    assert edit_ratio("a b", "x y") == 1.0


def test_the_script_stands_in_for_the_language() -> None:
    assert main_script("two 两 words") == "LATIN"
    assert main_script("两个红圈 a") == "CJK"
    assert main_script("12 + 3") is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but",
        "I am unable to",
        "As an AI language model,",
        "I can\u2019t see",
        "抱歉, 我",
        "非常抱歉, 我看不到图片。",
        "作为一个AI语言模型, 我不能",
        "无法识别图中的文字。",
        "Sorry, I",
    ],
)
def test_a_refusal_is_known_by_how_it_opens(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["I see a dog.", "The man says: I'm sorry", "Asia", "Sorry Street", "No"])
def test_an_answer_is_not_a_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_talk_about_the_task_is_not_an_answer() -> None:
    assert talks_about_the_task("The revised answer: red")
    assert talks_about_the_task("No changes needed.")
    assert not talks_about_the_task("The provided bowl is red, and the sign says no changes.")


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("left of the square, " * 4, True),
        ("so " * 8, True),
        ("so so so", False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10", False),
        ("The dog sees the dog and the dog sees the cat.", False),
        ("ab" * 20, True),
        ("", False),
    ],
)
def test_a_loop_is_a_text_that_ends_in_the_same_again_and_again(text: str, loops: bool) -> None:
    assert is_loop(text) is loops


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(UserError, match="is not a share"):
        VerifyConfig(max_edit_ratio=1.5)
