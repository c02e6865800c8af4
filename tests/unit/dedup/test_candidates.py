import pytest

from infinity_mm.dedup.candidates import may_repeat, pair_key

A, NEAR_A, NEARER, FAR = "0" * 16, "0" * 15 + "3", "0" * 15 + "1", "f" * 16
SHA = "ab" * 32


@pytest.mark.parametrize(
    ("images", "keys", "found"),
    [
        ([(A,), (A,), (A,)], [[1, 2], [3], [2]], [True, False, True]),
        ([(A,), (FAR,)], [[1], [1]], [False, False]),
        ([(A,), (NEAR_A,)], [[1], [1]], [False, False]),
        # A reaches NEAR_A by way of NEARER: more is compared than needs to be, never less.
        ([(A,), (NEAR_A,), (NEARER,)], [[1], [1], [2]], [True, True, False]),
        ([(SHA,), (SHA,), (A, A), (A, A), (A,)], [[1], [1], [2], [2], [2]], [True, True, True, True, False]),
        ([(A,), (A,)], [[], []], [False, False]),
        ([], [], []),
    ],
)
def test_candidates_share_a_pair_and_a_picture(
    images: list[tuple[str, ...]], keys: list[list[int]], found: list[bool]
) -> None:
    assert may_repeat(zip(images, keys, strict=True), 1).tolist() == found


def test_pairs_are_the_same_if_the_question_means_the_same_and_the_answer_is_the_same() -> None:
    assert pair_key("What colour is the car?", "red") == pair_key("what color is the car", "red")
    assert pair_key("What color is the car?", "red") != pair_key("What color is the car?", "blue")
    assert pair_key("What color is the car?", "red") != pair_key("What color is the bus?", "red")
