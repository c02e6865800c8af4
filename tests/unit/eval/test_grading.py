"""Which short replies count as right."""

import pytest

from infinity_mm.eval.grading import exact, final_answer, normalised


@pytest.mark.parametrize(
    ("reply", "accepted", "right"),
    [
        ("The red circle.", "a red circle", True),
        ("I count them. Answer: Three", "3", True),
        ("1,000 tons", "1000 tons", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("2-3", "2 3", True),
        ("50%", "50", False),
        ("红色", "蓝色", False),
        ("红色。", "红色", True),
        ("\uff39\uff45\uff53", "yes", True),  # full width
        ("?", "!", False),
        ("!", "!", True),
        ("", "the", False),
    ],
)
def test_what_does_not_count_is_case_punctuation_articles_and_words_for_numbers(
    reply: str, accepted: str, right: bool
) -> None:
    assert normalised(reply, [accepted, "something else"]) is right


def test_any_accepted_answer_will_do_and_exact_means_exact() -> None:
    assert exact(" Red ", ["blue", "Red"])
    assert not exact("red", ["blue", "Red"])
    assert not exact("", [])
    assert final_answer("The answer: a BIG -1,234.50 Dog!") == "big -1234.50 dog"
