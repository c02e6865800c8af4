import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.windtunnel.kinds import KINDS
from infinity_mm.windtunnel.questions import (
    NOT_UNDERSTOOD,
    TYPES,
    Query,
    Question,
    bad_questions,
    parse,
    questions,
    types_for,
)
from infinity_mm.windtunnel.truth import Accepted, NotUnderstood, Unanswerable, ask
from infinity_mm.windtunnel.world import sample_scene

INDEX = st.integers(0, 100_000)


def asked(num_scenes: int) -> list[Question]:
    """Six questions about each of many scenes, as training draws them."""
    return [
        question
        for i in range(num_scenes)
        for question in questions(sample_scene(world_seed=0, index=i, split="train"), random.Random(i), n=6)
    ]


@given(index=INDEX)
def test_every_question_parses_back_and_the_oracle_accepts_its_answers(index: int) -> None:
    scene = sample_scene(world_seed=1, index=index, split="train")
    for question in questions(scene, random.Random(index)):
        query = parse(question.text)
        assert query is not None
        assert query.type == question.type
        assert ask(scene, question.text) == Accepted(answers=question.answers, type=question.type)


@given(index=INDEX)
def test_questions_are_distinct_and_their_boxes_lie_inside_the_image(index: int) -> None:
    found = questions(sample_scene(world_seed=1, index=index, split="train"), random.Random(index))
    assert len({parse(question.text) for question in found}) == len(found)
    for box in (box for question in found for box in question.boxes):
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


@given(index=INDEX)
def test_bad_questions_have_no_answer_here(index: int) -> None:
    scene = sample_scene(world_seed=1, index=index, split="train")
    for question in bad_questions(scene, random.Random(index), 6):
        truth = ask(scene, question.text)
        assert question.answers == ()
        if question.type == NOT_UNDERSTOOD:
            assert truth == NotUnderstood()
        else:
            assert truth == Unanswerable(type=question.type)


def test_a_third_of_the_bad_questions_is_garbled() -> None:
    scene = sample_scene(world_seed=0, index=0, split="train")
    types = [question.type for question in bad_questions(scene, random.Random(0), 9)]
    assert types.count(NOT_UNDERSTOOD) == 3


def test_every_type_is_asked_by_some_scene() -> None:
    found = {
        type for i in range(80) for type in types_for(sample_scene(world_seed=0, index=i, split="train"))
    }
    assert found == set(TYPES)


def test_types_take_turns_in_a_short_list() -> None:
    scene = sample_scene(world_seed=0, index=1, split="train")
    types = [question.type for question in questions(scene, random.Random(0), n=6)]
    assert len(set(types)) == 6


def test_one_type_can_be_asked_for() -> None:
    scene = sample_scene(world_seed=0, index=1, split="train")
    found = questions(scene, random.Random(0), type="chart/value/read_value", n=1)
    assert [question.type for question in found] == ["chart/value/read_value"]
    assert questions(scene, random.Random(0), type="table/cell/lookup") == []


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match="no instruction type 'fine'"):
        questions(sample_scene(world_seed=0, index=1, split="train"), random.Random(0), type="fine")


def test_yes_and_no_are_about_equally_frequent_in_every_type() -> None:
    by_type: dict[str, Counter[str]] = {}
    for question in asked(1500):
        by_type.setdefault(question.type, Counter())[question.answers[0]] += 1
    yes_no = {type: counts for type, counts in by_type.items() if set(counts) <= {"yes", "no"}}
    assert len(yes_no) == 7
    for type, counts in yes_no.items():
        assert 0.42 < counts["yes"] / counts.total() < 0.6, type


def test_no_count_is_given_to_nearly_half_of_the_counting_questions() -> None:
    counts = Counter(q.answers[0] for q in asked(2000) if q.type == "fine_cross/counting/count")
    assert max(counts.values()) / counts.total() < 0.4
    assert set(counts) == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("What color is the circle?", Query(type="fine_single/attribute/color", args=("circle",))),
        ("what colour is circle", Query(type="fine_single/attribute/color", args=("circle",))),
        ("Please count the red crosses!", Query(type="fine_cross/counting/count", args=("red cross",))),
        ("Is there an orange star?", Query(type="logic/existence/present", args=("orange star",))),
        (
            "Is the red star left of the large blue circle?",
            Query(type="relation/spatial/relative", args=("red star", "left of", "large blue circle")),
        ),
        (
            "Is the Qty of TEA higher than that of Rice?",
            Query(type="table/comparison/higher", args=("tea", "qty", "rice")),
        ),
        ("Which field says K7Q?", Query(type="ocr/document/field_name", args=("k7q",))),
        ("What color is the banana?", None),
        ("What color circle?", None),
        ("", None),
    ],
)
def test_parsing_forgives_case_punctuation_and_articles_and_nothing_else(
    text: str, query: Query | None
) -> None:
    assert parse(text) == query


def test_both_wordings_of_every_type_are_used() -> None:
    texts = [question.text for question in asked(1500)]
    for kind in KINDS.values():
        for template in kind.templates:
            start = template.partition("{")[0]
            assert any(text.startswith(start) for text in texts), template
