from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.quality.agreement import agrees


@pytest.mark.parametrize(
    ("short", "answer", "same"),
    [
        ("red", "Red.", True),
        ("the red circle", "A red circle", True),
        ("three", "3", True),
        ("3", "There are three dogs and one cat.", True),
        ("13", "There are 3.", False),
        ("red", "The circle is red.", True),
        ("red", "The red one is gone. Answer: blue", False),
        ("blue", "It looks red at first. Answer: green. No: Answer: blue", True),
        ("red circle", "a circle that is red", False),
        ("red", "blue", False),
        ("yes", "Yes, there is a dog.", True),
        ("no", "Yes, there is no dog.", False),
        ("No", "no", True),
        ("No", "There is no dog.", True),
        ("red", "I looked closely at the coat of the man, and I would say that the answer is red", True),
        ("红色", "经过仔细观察\uff0c答案是红色", True),
        ("Answer: red", "red", True),
        ("红色", "答案\uff1a红色", True),
        ("红色", "蓝色", False),
        ("红色", "答案\uff1a红色的\u3002", True),
        ("红色", "门是红色的\u3002", True),
        ("红色", "门不是红色的\u3002", False),
        ("是", "是的\uff0c图中有一只狗\u3002", True),
        ("是的", "不是\uff0c图中没有狗\u3002", False),
        ("没有", "没有\uff0c桌上是空的\u3002", True),
        ("有", "没有", False),
        ("3", "共有3只狗", True),
        ("三只", "共有3只狗\u3002", True),
        ("3", "共有13只狗", False),
        ("十二", "12", True),
        ("狗", "一只狗", True),
        ("狗", "一个热狗", False),
        (
            "红色",
            "图中有一张桌子\uff0c上面有一本红色的书和一个杯子\uff0c旁边坐着一位老人\uff0c他在看书\u3002",
            False,
        ),
        ("red", "The sign is not red.", False),
        ("no dog", "There is no dog.", True),
        (
            "red",
            "A man in a red coat walks past a shop with green shutters, two bicycles and a sleeping cat; it is noon.",
            False,
        ),
        (
            "yes",
            "Yes, because all of the chairs are taken by guests who wait for the second course of the meal.",
            True,
        ),
        ("", "red", False),
        ("", "", False),
        ("the", "the", True),
        ("the", "a", False),
        ("?", "!", False),
    ],
)
def test_answers_agree_if_they_conclude_the_same(short: str, answer: str, same: bool) -> None:
    assert agrees(short, answer) is same


@given(st.text(alphabet="abc 12", min_size=1).filter(str.strip))
def test_an_answer_agrees_with_itself_however_it_is_introduced(text: str) -> None:
    assert agrees(text, text)
    assert agrees(text, f"I looked closely. Answer: {text}")
