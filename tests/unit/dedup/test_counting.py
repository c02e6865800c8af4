"""How often a set asks the same question."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.dedup.counting import key_of, use_numbers
from infinity_mm.dedup.text import same_question


def test_near_duplicates_are_counted_together_in_id_order_whatever_the_order_they_come_in() -> None:
    asked = [
        ("c.q0", "how many dogs are in the image"),
        ("a.q0", "How many dogs?"),
        ("b.q0", "How many cats?"),
        ("b.q1", "How many dogs are there?"),
    ]
    assert use_numbers(asked).tolist() == [3, 1, 1, 2]
    assert use_numbers(reversed(asked)).tolist() == [2, 1, 1, 3]
    assert use_numbers([]).tolist() == []


def test_a_question_without_words_that_carry_meaning_is_known_by_its_text() -> None:
    assert key_of("Is it?") == key_of("is it ?")
    assert key_of("Is it?") != key_of("Is this?")


def test_chinese_questions_are_the_same_with_and_without_their_opening() -> None:
    plain, long, other = "图中有几只狗\uff1f", "请问这张图片里有几只狗\uff1f", "图中有几只猫\uff1f"
    assert key_of(plain) == key_of(long) != key_of(other)
    assert same_question(plain, long)
    assert not same_question(plain, other)


@given(st.lists(st.sampled_from(["Why?", "How many?", "What color?"]), max_size=30), st.randoms())
def test_the_numbers_of_a_question_are_one_to_its_count(texts: list[str], random: object) -> None:
    asked = [(f"{n:04d}.q0", text) for n, text in enumerate(texts)]
    seen: Counter[str] = Counter()
    expected: list[int] = []
    for text in texts:
        seen[text] += 1
        expected.append(seen[text])
    places = list(range(len(asked)))
    random.shuffle(places)  # type: ignore[attr-defined]
    numbers = use_numbers([asked[place] for place in places])
    assert [expected[place] for place in places] == numbers.tolist()
