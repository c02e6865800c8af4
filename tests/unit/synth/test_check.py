from __future__ import annotations

import math

import pytest
from synth_fakes import FakeEngine, outcomes_of, saying, seen, told

from infinity_mm.engines.base import Reply
from infinity_mm.errors import UserError
from infinity_mm.synth.check import Check, CheckConfig, read_check
from infinity_mm.synth.stage import check_engines

BY_WORD = CheckConfig()
BY_PROBABILITY = CheckConfig(min_probability=0.7)
QUESTION = seen("a.q0", question="How many dogs?")


def weighed(yes: float) -> Reply:
    return Reply(text="yes", choice_logprobs=(math.log(yes), math.log(1 - yes)))


@pytest.mark.parametrize(
    ("reply", "answerable"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**no**", False),
        ("No, there is none", False),
        ("maybe", None),
        ("", None),
    ],
)
def test_the_word_decides_where_no_probability_is_asked_for(reply: str, answerable: bool | None) -> None:
    assert read_check(Reply(text=reply), BY_WORD) is answerable


@pytest.mark.parametrize(("yes", "answerable"), [(0.71, True), (0.69, False)])
def test_the_probability_decides_where_it_is_asked_for(yes: float, answerable: bool) -> None:
    assert read_check(weighed(yes), BY_PROBABILITY) is answerable


def test_a_reply_without_the_probability_asked_for_is_not_guessed_at() -> None:
    assert read_check(Reply(text="yes"), BY_PROBABILITY) is None
    assert read_check(Reply(text="yes", choice_logprobs=(math.nan, 0.0)), BY_PROBABILITY) is None


def test_check_drops_what_the_image_does_not_answer() -> None:
    assert told(outcomes_of(Check(BY_WORD), [QUESTION], saying("no"))) == [("Dropped", "not_answerable")]
    assert told(outcomes_of(Check(BY_WORD), [QUESTION], saying("yes"))) == [("Emitted", "")]


def test_an_unreadable_check_is_set_aside_with_the_reply() -> None:
    (outcome,) = outcomes_of(Check(BY_WORD), [QUESTION], saying("perhaps"))
    assert told([outcome]) == [("Quarantined", "unreadable_check")]
    assert "perhaps" in outcome.error  # type: ignore[union-attr]


def test_the_reply_is_one_of_two_choices() -> None:
    engine = saying("yes")
    outcomes_of(Check(BY_WORD), [QUESTION], engine)
    assert engine.batches[0][0].choices == ("yes", "no")


def test_an_engine_without_probabilities_is_refused_before_the_run() -> None:
    blind = FakeEngine(lambda request: Reply(text="yes"), logprobs=False)
    check_engines([Check(BY_WORD)], {"teacher": blind})
    with pytest.raises(UserError, match=r"set check\.min_probability to null"):
        check_engines([Check(BY_PROBABILITY)], {"teacher": blind})


def test_an_engine_without_eyes_is_refused_before_the_run() -> None:
    with pytest.raises(UserError, match="the teacher takes 0"):
        check_engines([Check(BY_WORD)], {"teacher": FakeEngine(lambda request: Reply(text=""), images=0)})
