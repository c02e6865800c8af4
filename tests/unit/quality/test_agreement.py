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
        ("Answer: red", "red", True),
        ("红色", "答案\uff1a红色", True),
        ("红色", "蓝色", False),
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
