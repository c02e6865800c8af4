from __future__ import annotations

import asyncio
import math

import pytest
from synth_fakes import FakeEngine, context, outcomes_of, saying, seen, told

from infinity_mm.engines.base import Reply
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Emitted, Outcome, Quarantined, Score
from infinity_mm.synth.decide import Decide
from infinity_mm.synth.judge import CHOICES, SCHEMA, Judge, JudgeConfig, read_number, read_score

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
        ("9.9", None),
        ("-8/10", None),
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
    assert read_score(Reply(text="8", choice_logprobs=logprobs), JudgeConfig()) == Score(
        overall=8, expected=9.0, uncertainty=round(math.log(2), 6)
    )


def test_without_probabilities_only_the_written_score_is_known() -> None:
    assert read_score(Reply(text="8"), JudgeConfig()) == Score(overall=8)


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


REASONED = Judge(JudgeConfig(with_reason=True, max_new_tokens=256))
DEFAULT = PromptSet.load("default")


def reasoned(*said: str) -> tuple[FakeEngine, Outcome]:
    replies = iter(said)
    judge = FakeEngine(lambda request: Reply(text=next(replies)))
    (outcome,) = asyncio.run(REASONED.run([PAIR], context(saying(""), judge, DEFAULT)))
    return judge, outcome


def test_a_judge_that_is_asked_for_a_reason_gives_it_with_the_score() -> None:
    judge, outcome = reasoned('Here it is:\n```json\n{"reason": "two is right", "score": 9}\n```')
    assert isinstance(outcome, Emitted)
    assert outcome.sample.score == Score(overall=9, reason="two is right")
    assert [(request.choices, request.schema) for request in judge.batches[0]] == [((), SCHEMA)]


def test_a_reply_that_is_not_the_json_is_asked_for_once_more_and_both_calls_are_on_record() -> None:
    judge, outcome = reasoned("Nine!", '{"reason": "two is right", "score": 9}')
    assert isinstance(outcome, Emitted)
    assert outcome.sample.score == Score(overall=9, reason="two is right")
    assert [call.stage for call in outcome.sample.calls] == ["judge", "judge.repair"]
    assert [call.prompt.split("@")[0] for call in outcome.sample.calls] == [
        "default/judge_reason",
        "default/repair",
    ]
    (repair,) = judge.batches[1]
    assert [turn.role for turn in repair.turns[-3:]] == ["user", "assistant", "user"]
    assert repair.turns[-2].text == "Nine!"
    assert "there is no JSON in it" in repair.turns[-1].text


def test_json_that_is_not_mended_is_quarantined_with_what_is_wrong() -> None:
    judge, outcome = reasoned('{"reason": "", "score": 11}', '{"reason": "", "score": 12}')
    assert isinstance(outcome, Quarantined)
    assert (outcome.reason, len(judge.batches)) == ("unreadable_json", 2)
    assert "12 is greater than the maximum of 10" in outcome.error


def test_json_that_was_cut_off_is_not_asked_for_again() -> None:
    judge = FakeEngine(lambda request: Reply(text='{"reason": "two is', finish_reason="length"))
    (outcome,) = asyncio.run(REASONED.run([PAIR], context(saying(""), judge, DEFAULT)))
    assert (told([outcome]), len(judge.batches)) == ([("Quarantined", "cut_off")], 1)


def test_a_reason_needs_room() -> None:
    with pytest.raises(UserError, match=r"judge\.max_new_tokens"):
        JudgeConfig(with_reason=True)
