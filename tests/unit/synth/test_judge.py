from __future__ import annotations

import math

import pytest
from synth_fakes import FakeEngine, outcomes_of, saying, seen, told

from infinity_mm.engines.base import Reply
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Emitted, Score
from infinity_mm.synth.decide import Decide
from infinity_mm.synth.judge import CHOICES, Judge, JudgeConfig, read_number, read_score

PAIR = seen("a.q0.short", question="How many?", answer="Three", style="short")


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("8", 8),
        ("10", 10),
        (" 8. ", 8),
        ("**8**", 8),
        ("8/10", 8),
        ("8 out of 10", 8),
        ("Score: 8", 8),
        ("Scores: alignment fine.\nScore: 7", 7),
        ("Two dogs, not 3. Score: 2", 2),
        ("I would give it an 8.", 8),
        ("8.0", 8),
        ("7.5", None),
        ("0", None),
        ("11", None),
        ("-3", None),
        ("2-3", None),
        ("Score: -3", None),
        ("100", None),
        ("Either 7 or 8", None),
        ("eight", None),
        ("", None),
    ],
)
def test_a_score_is_read_only_where_one_is_stated(reply: str, score: int | None) -> None:
    assert read_number(reply) == score


def test_probabilities_give_the_expected_score_and_its_uncertainty() -> None:
    none = -math.inf
    logprobs = (none, none, none, none, none, none, none, math.log(0.5), none, math.log(0.5))
    assert read_score(Reply(text="8", choice_logprobs=logprobs)) == Score(
        overall=8, expected=9.0, uncertainty=round(math.log(2), 6)
    )


def test_without_probabilities_only_the_written_score_is_known() -> None:
    assert read_score(Reply(text="8")) == Score(overall=8)


def test_an_unreadable_score_is_quarantined_and_never_a_default() -> None:
    assert told(outcomes_of(Judge(JudgeConfig()), [PAIR], saying("good"))) == [
        ("Quarantined", "unreadable_score")
    ]


@pytest.mark.parametrize("logprobs", [(0.0,), (math.nan,) * 10, (-math.inf,) * 10])
def test_broken_probabilities_are_quarantined(logprobs: tuple[float, ...]) -> None:
    engine = FakeEngine(lambda request: Reply(text="8", choice_logprobs=logprobs))
    assert told(outcomes_of(Judge(JudgeConfig()), [PAIR], engine)) == [("Quarantined", "ValueError")]


def test_the_judge_is_asked_and_not_the_teacher() -> None:
    teacher, judge = saying("1"), saying("9")
    (outcome,) = outcomes_of(Judge(JudgeConfig()), [PAIR], teacher, judge)
    assert isinstance(outcome, Emitted)
    assert outcome.sample.score == Score(overall=9)
    assert (len(teacher.batches), judge.batches[0][0].choices) == (0, CHOICES)


def test_the_policy_decides_and_a_dropped_pair_keeps_its_score() -> None:
    stage = Decide(Policy(keep_at=8, rewrite_at=4))
    pairs = [seen(str(score), score=Score(overall=score)) for score in (8, 7, 4, 3)]
    outcomes = outcomes_of(stage, pairs, saying(""))
    assert told(outcomes) == [("Emitted", "")] * 3 + [("Dropped", "score_low")]
    assert [outcome.sample.decision for outcome in outcomes] == ["keep", "rewrite", "rewrite", "drop"]  # type: ignore[union-attr]
