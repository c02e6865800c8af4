import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from truth_cases import CASES, CHART, SHAPES, Case, scene_of

from infinity_mm.errors import UserError
from infinity_mm.windtunnel.answers import LEVELS, STYLES, Level, Style, answer, wrong_answer
from infinity_mm.windtunnel.questions import Question, questions
from infinity_mm.windtunnel.truth import final_answer, grade
from infinity_mm.windtunnel.world import sample_scene

INDEX = st.integers(0, 100_000)


def question_of(text: str) -> Question:
    return Question(type="", text=text, answers=(), boxes=(), family="")


@given(index=INDEX, style=st.sampled_from(STYLES))
def test_right_answers_are_right_and_short_enough(index: int, style: Style) -> None:
    scene, rng = sample_scene(world_seed=2, index=index, split="train"), random.Random(index)
    for question in questions(scene, rng, n=8):
        text = answer(scene, question, style, rng)
        assert grade(scene, question.text, text) == "right"
        assert len(text.split()) <= 35


@given(index=INDEX, style=st.sampled_from(STYLES), level=st.sampled_from(LEVELS))
def test_wrong_answers_are_wrong(index: int, style: Style, level: Level) -> None:
    scene, rng = sample_scene(world_seed=2, index=index, split="train"), random.Random(index)
    for question in questions(scene, rng, n=8):
        text = wrong_answer(scene, question, style, level, rng)
        assert text is not None
        assert grade(scene, question.text, text) == "wrong"


@given(index=INDEX, level=st.sampled_from(LEVELS))
def test_a_wrong_answer_ends_the_same_in_every_style(index: int, level: Level) -> None:
    scene = sample_scene(world_seed=2, index=index, split="train")
    for question in questions(scene, random.Random(index), n=4):
        texts = [wrong_answer(scene, question, style, level, random.Random(index)) for style in STYLES]
        assert len({final_answer(text) for text in texts if text is not None}) == 1


def test_the_three_styles_of_one_answer() -> None:
    texts = [
        answer(scene_of(CHART), question_of("How far apart are Tea and Rice?"), style, random.Random(0))
        for style in STYLES
    ]
    assert texts == ["5", "12 - 7 = 5. Answer: 5", "Tea is 12. Rice is 7. 12 - 7 = 5. Answer: 5"]


def test_the_sentences_of_a_wrong_answer_agree_with_it() -> None:
    text = wrong_answer(
        scene_of(SHAPES), question_of("Where is the circle?"), "brief", "one_fact", random.Random(1)
    )
    assert text in ("The circle is at the top. Answer: top", "The circle is at the left. Answer: left")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.type)
def test_every_type_can_be_answered_wrongly_by_one_fact(case: Case) -> None:
    scene = scene_of(case.facts)
    text = wrong_answer(scene, question_of(case.question), "detailed", "one_fact", random.Random(0))
    assert text is not None
    assert grade(scene, case.question, text) == "wrong"


def test_numbers_are_misread_by_little() -> None:
    question = question_of("What is the value of Tea?")
    found = {
        wrong_answer(scene_of(CHART), question, "short", "one_fact", random.Random(i)) for i in range(50)
    }
    assert found == {"10", "11", "13", "14"}


def test_the_same_random_numbers_give_the_same_mistake() -> None:
    question = question_of("What is the value of Tea?")
    first, second = (
        wrong_answer(scene_of(CHART), question, "detailed", "random", random.Random(7)) for _ in range(2)
    )
    assert first == second


def test_a_question_without_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match="has no answer on this scene"):
        answer(scene_of(SHAPES), question_of("What is the title?"), "short", random.Random(0))
