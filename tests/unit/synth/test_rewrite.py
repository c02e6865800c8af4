from __future__ import annotations

import pytest
from synth_fakes import FakeEngine, by_prompt, outcomes_of, prompt_of, saying, seen, told

from infinity_mm.engines.base import Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Emitted, Sample, Score
from infinity_mm.synth.judge import JudgeConfig
from infinity_mm.synth.rewrite import Rewrite, RewriteConfig

POLICY = Policy(keep_at=8, rewrite_at=4)
STAGE = Rewrite(RewriteConfig(), POLICY, JudgeConfig())
POOR = seen("a.q0.short", question="How many?", answer="two", score=Score(overall=5), decision="rewrite")
GOOD = seen("a.q1.short", question="Which?", answer="red", score=Score(overall=9), decision="keep")


def rewritten(sample: Sample, new: str, score: str) -> list[tuple[str, str]]:
    return told(outcomes_of(STAGE, [sample], saying(new), saying(score)))


def test_a_rewrite_that_is_good_and_better_replaces_the_answer() -> None:
    (outcome,) = outcomes_of(STAGE, [POOR], saying("three"), saying("9"))
    assert isinstance(outcome, Emitted)
    sample = outcome.sample
    assert (sample.answer, sample.score, sample.decision) == ("three", Score(overall=9), "keep")
    assert sample.previous == (("two", Score(overall=5)),)
    assert [call.stage for call in sample.calls] == ["rewrite", "rewrite.judge"]


def test_what_is_kept_passes_and_costs_no_call() -> None:
    teacher = saying("three")
    assert outcomes_of(STAGE, [GOOD], teacher) == [Emitted(sample=GOOD)]
    assert teacher.batches == []


@pytest.mark.parametrize(
    ("new", "score", "reason"),
    [
        ("two", "9", "rewrite_unchanged"),
        ("", "9", "empty_reply"),
        ("I cannot see that.", "9", "refusal"),
        ("three " * 40, "9", "loop"),
        ("The answer is already correct.", "9", "rewrite_talks_about_the_task"),
        ("It is one of the many things that can be seen", "9", "rewrite_too_long"),
        ("three", "7", "rewrite_score_low"),
    ],
)
def test_a_rewrite_is_dropped_for_a_named_reason(new: str, score: str, reason: str) -> None:
    assert rewritten(POOR, new, score) == [("Dropped", reason)]


def test_a_rewrite_that_gains_too_little_is_dropped() -> None:
    stage = Rewrite(RewriteConfig(min_gain=4), POLICY, JudgeConfig())
    assert told(outcomes_of(stage, [POOR], saying("three"), saying("8"))) == [
        ("Dropped", "rewrite_not_better")
    ]


def test_a_cut_off_rewrite_is_dropped_and_an_unreadable_score_is_quarantined() -> None:
    cut = FakeEngine(lambda request: Reply(text="three", finish_reason="length"))
    assert told(outcomes_of(STAGE, [POOR], cut, saying("9"))) == [("Dropped", "cut_off")]
    assert rewritten(POOR, "three", "fine") == [("Quarantined", "unreadable_score")]


def test_only_drafts_that_pass_the_checks_in_code_are_shown_to_the_judge() -> None:
    other = seen("a.q2.short", question="Where?", answer="left", score=Score(overall=5), decision="rewrite")
    teacher, judge = by_prompt({"How many?": "three", "Where?": "left"}), saying("9")
    outcomes = outcomes_of(STAGE, [POOR, GOOD, other], teacher, judge)
    assert told(outcomes) == [("Emitted", ""), ("Emitted", ""), ("Dropped", "rewrite_unchanged")]
    assert [len(batch) for batch in teacher.batches] == [2]
    assert [len(batch) for batch in judge.batches] == [1]


def test_a_second_round_draws_again_from_the_same_answer() -> None:
    stage = Rewrite(RewriteConfig(max_rounds=2, temperature=0.8), POLICY, JudgeConfig())
    teacher = FakeEngine(lambda request: Reply(text=f"three {request.draw}"))
    judge = FakeEngine(lambda request: Reply(text="9" if "three 1" in prompt_of(request) else "5"))
    (outcome,) = outcomes_of(stage, [POOR], teacher, judge)
    assert isinstance(outcome, Emitted)
    assert outcome.sample.answer == "three 1"
    first, second = (batch[0] for batch in teacher.batches)
    assert _without_draw(first) == _without_draw(second)
    assert first.seed != second.seed
    assert [call.stage for call in outcome.sample.calls] == ["rewrite", "rewrite.judge"] * 2
    assert len({call.key for call in outcome.sample.calls}) == 4


def test_a_second_greedy_round_is_refused() -> None:
    with pytest.raises(UserError, match="asks the same again"):
        RewriteConfig(max_rounds=2)


def _without_draw(request: Request) -> tuple[object, ...]:
    return (request.turns, request.images, request.temperature)
