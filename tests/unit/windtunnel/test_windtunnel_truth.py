import pytest
from truth_cases import CASES, CHART, FORM, SHAPES, SIGN, STAR, TABLE, Case, scene_of

from infinity_mm.windtunnel.questions import TYPES
from infinity_mm.windtunnel.scene import Facts, ShapesFacts
from infinity_mm.windtunnel.truth import Accepted, NotUnderstood, Unanswerable, ask, final_answer, grade


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.type)
def test_the_answer_follows_the_fact_it_is_about(case: Case) -> None:
    before, after = ask(scene_of(case.facts), case.question), ask(scene_of(case.changed), case.question)
    assert isinstance(before, Accepted)
    assert isinstance(after, Accepted)
    assert (before.type, before.answers[0]) == (case.type, case.answer)
    assert (after.type, after.answers[0]) == (case.type, case.new_answer)
    assert grade(scene_of(case.changed), case.question, case.answer) == "wrong"


def test_there_is_a_case_for_every_type() -> None:
    assert [case.type for case in CASES] == list(TYPES)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (SHAPES, "What color is the diamond?"),
        (ShapesFacts(things=(STAR, STAR)), "What color is the star?"),
        (SHAPES, "What color is the red circle?"),
        (SHAPES, "What is at the center?"),
        (SHAPES, "What is the value of Tea?"),
        (CHART, "What is the value of Corn?"),
        (CHART, "Is Tea higher than Tea?"),
        (TABLE, "What is the Sold of Tea?"),
        (TABLE, "Read the header of column 9."),
        (SIGN, "Read line 3."),
        (SIGN, "What is the Total?"),
        (FORM, "What is the City?"),
        (FORM, "What color is the sign?"),
    ],
)
def test_a_question_about_what_is_absent_or_ambiguous_is_unanswerable(facts: Facts, text: str) -> None:
    assert isinstance(ask(scene_of(facts), text), Unanswerable)
    assert grade(scene_of(facts), text, "red") == "unanswerable"


def test_nonsense_is_not_understood() -> None:
    assert ask(scene_of(SHAPES), "What color is the banana?") == NotUnderstood()
    assert grade(scene_of(SHAPES), "What color is the banana?", "yellow") == "not_understood"


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("red", "red"),
        ("The circle is red. Answer: Red.", "red"),
        ("Answer: blue. No, wait. ANSWER: the green bar", "green bar"),
        ("Three", "3"),
        ("Answer: Name: Ana", "name ana"),
        ("  The Top   Left! ", "top left"),
        ("", ""),
    ],
)
def test_the_final_answer_is_what_follows_the_last_mark(text: str, final: str) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    ("answer", "grade_of_it"),
    [
        ("top left", "right"),
        ("upper left", "right"),
        ("It is small. Answer: the top left", "right"),
        ("left", "wrong"),
        ("top left or right", "wrong"),
        ("", "wrong"),
    ],
)
def test_grading_takes_aliases_and_nothing_else(answer: str, grade_of_it: str) -> None:
    assert grade(scene_of(SHAPES), "Where is the circle?", answer) == grade_of_it


def test_sentences_before_the_final_answer_are_not_graded() -> None:
    assert grade(scene_of(SHAPES), "What color is the circle?", "The circle is blue. Answer: red") == "right"
