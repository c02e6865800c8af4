from __future__ import annotations

import pytest

from infinity_mm.engines.base import Reply
from infinity_mm.quality.hygiene import Words, reply_fault

CHINESE = "图中有两只狗在草地上奔跑, 旁边有一个红色的球."


def fault(text: str, *, script: str | None = "LATIN", cut: bool = False) -> str | None:
    return reply_fault(Reply(text=text, finish_reason="length" if cut else "stop"), script=script)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Three.", None),
        ("3", None),
        ("10, 10, 10, 10", None),
        ("", "empty_reply"),
        (" \n ", "empty_reply"),
        ("the dog and " * 20, "loop"),
        ("0" * 200, "loop"),
        ("I'm sorry, I cannot see it.", "refusal"),
        ("抱歉, 我看不到图片中的内容, 因此无法回答.", "refusal"),
        ("The sign says 'Ausgang'.", None),
        (CHINESE, "wrong_language"),
        ("두 마리의 개가 잔디밭에서 즐겁게 뛰고 있습니다.", "wrong_language"),
    ],
)
def test_a_useless_reply_has_one_reason(text: str, found: str | None) -> None:
    assert fault(text) == found


def test_a_reply_that_was_cut_is_useless_and_a_loop_that_was_cut_is_a_loop() -> None:
    assert fault("The dog is", cut=True) == "cut_off"
    assert fault("the dog and " * 20, cut=True) == "loop"


def test_the_language_is_that_of_the_prompts() -> None:
    assert fault(CHINESE, script="CJK") is None
    assert fault("There are two dogs running on the grass.", script="CJK") == "wrong_language"
    assert fault(CHINESE, script=None) is None


def test_what_is_quoted_and_what_is_short_may_be_in_any_language() -> None:
    assert fault(f'It says "{CHINESE}"') is None
    assert fault("出口") is None
    assert fault("请勿吸烟") == "wrong_language"


@pytest.mark.parametrize(
    ("words", "script", "text", "found"),
    [
        ("question", "LATIN", "图中左侧的男孩手里拿着什么\uff1f", "wrong_language"),
        ("question", "LATIN", "What does 出口 on the sign mean?", None),
        ("question", "CJK", "What is it?", "wrong_language"),
        ("question", "CJK", "图中的Coca-Cola Zero Sugar有几瓶\uff1f", None),
        ("question", "CJK", "3+5=?", None),
        ("answer", "CJK", "可口可乐 Coca-Cola Zero Sugar", None),
        ("answer", "CJK", "Coca-Cola", None),
        ("answer", "LATIN", "图中有两只狗", "wrong_language"),
    ],
)
def test_questions_are_in_the_language_and_answers_may_be_names(
    words: Words, script: str, text: str, found: str | None
) -> None:
    assert reply_fault(Reply(text=text), script=script, words=words) == found


def test_reasoning_is_no_part_of_what_is_looked_at() -> None:
    reply = Reply(text="Three.", reasoning="I'm sorry, I cannot see. " * 20)
    assert reply_fault(reply, script="LATIN") is None
