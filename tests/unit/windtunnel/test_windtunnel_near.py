import random

from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.windtunnel.answers import wrong_answer
from infinity_mm.windtunnel.kinds.base import near_codes, near_numbers, near_words
from infinity_mm.windtunnel.questions import questions
from infinity_mm.windtunnel.words import CODE_CHARACTERS, MAX_VALUE, SIGN_WORDS
from infinity_mm.windtunnel.world import sample_scene


def test_a_number_is_off_by_one_or_two_or_has_one_digit_misread() -> None:
    assert near_numbers(13, 0, 99) == ["14", "12", "15", "11", "73", "18"]
    assert near_numbers(13, 1, 20) == ["14", "12", "15", "11", "18"]


def test_a_misread_code_is_still_a_code() -> None:
    assert near_codes("A3K") == ["43K", "A9K", "A3X"]
    assert {c for code in map(near_codes, CODE_CHARACTERS) for c in code} <= set(CODE_CHARACTERS)


def test_a_word_is_taken_for_a_look_alike_before_a_letter_is_misread() -> None:
    assert near_words("PARK", SIGN_WORDS)[:3] == ["BANK", "WALK", "SALE"]
    assert near_words("PARK", SIGN_WORDS)[3:] == ["RARK", "PHRK", "PAPK", "PARX"]


@given(index=st.integers(0, 10_000))
def test_a_wrong_value_of_a_bar_is_a_value_that_a_bar_can_have(index: int) -> None:
    scene, rng = sample_scene(world_seed=4, index=index, split="train", family="chart"), random.Random(index)
    for question in questions(scene, rng, type="chart/value/read_value"):
        text = wrong_answer(scene, question, "short", "one_fact", rng)
        assert text is not None
        assert 1 <= int(text) <= MAX_VALUE
