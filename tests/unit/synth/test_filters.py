"""The filters `blind` and `loss`: they label, the policy drops, a rewrite is labelled anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from synth_fakes import NANO, PICTURE, FakeEngine, prompt_of, saying, seen, told

from infinity_mm.engines.base import Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.errors import UserError
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Emitted, ImageSlot, Label, Outcome, Quarantined, Sample, Score
from infinity_mm.synth.blind import Blind, BlindConfig
from infinity_mm.synth.judge import JudgeConfig
from infinity_mm.synth.loss import Loss
from infinity_mm.synth.rewrite import Rewrite, RewriteConfig
from infinity_mm.synth.stage import Context, Stage, check_engines
from infinity_mm.synth.stages import JourneyConfig, build_stages
from infinity_mm.taxonomy.tree import Tree

RED = seen(
    "a.q0.short",
    parents=("a.q0",),
    question="What color?",
    answer="red",
    style="short",
    score=Score(overall=9),
)
LONG = replace(RED, id="a.q0.brief", answer="It is like a rose. Answer: red", style="brief")
BLUE = replace(RED, id="a.q1.short", parents=("a.q1",), question="What shape?", answer="star")


def run(
    stage: Stage,
    samples: Sequence[Sample],
    *,
    teacher: FakeEngine | None = None,
    scorer: FakeEngine | None = None,
) -> list[Outcome]:
    mute = saying("")
    engines = {"teacher": teacher or mute, "judge": saying("9"), "scorer": scorer or mute}
    return asyncio.run(stage.run(samples, Context(engines=engines, prompts=NANO, seed=7)))


def labels(outcomes: Sequence[Outcome]) -> list[tuple[Label, ...]]:
    return [outcome.sample.labels for outcome in outcomes if isinstance(outcome, Emitted)]


def length(scoring: Scoring) -> Likelihood | Failure:
    """As unlikely as it is long; stars cannot be scored."""
    text = scoring.turns[-1].text
    if text == "star":
        return Failure(reason="too_long", detail="300 tokens, the model has 200 positions")
    return Likelihood(mean_logprob=-len(text) / 2, num_tokens=len(text))


def test_the_question_alone_is_asked_and_a_right_guess_is_labelled_in_every_style() -> None:
    teacher = saying("Red")
    found = run(Blind(BlindConfig()), [RED, LONG, BLUE], teacher=teacher)
    assert labels(found) == [(Label(name="blind", value=value),) for value in (1.0, 1.0, 0.0)]
    (requests,) = teacher.batches
    assert [(request.images, prompt_of(request)) for request in requests[:1]] == [
        ((), "What color?\nAnswer with a word or phrase.")
    ]
    assert not any(isinstance(part, ImageSlot) for request in requests for part in request.turns[-1].content)
    assert found[0].sample.images == (PICTURE,)  # type: ignore[union-attr]
    assert found[0].sample.calls[-1].stage == "blind"  # type: ignore[union-attr]


def test_the_styles_of_a_question_share_one_guess() -> None:
    teacher = saying("red")
    run(Blind(BlindConfig()), [RED, LONG, BLUE], teacher=teacher)
    first, second, third = teacher.batches[0]
    assert first.key("m") == second.key("m") != third.key("m")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(text="red", finish_reason="length"),
        Reply(text="I cannot see an image."),
        Failure(reason="content_filter", detail=""),
        Failure(reason="empty_reply", detail="only reasoning"),
    ],
)
def test_who_declines_to_guess_has_not_found_the_answer(reply: Reply | Failure) -> None:
    found = run(Blind(BlindConfig()), [RED], teacher=FakeEngine(lambda request: reply))
    assert labels(found) == [(Label(name="blind", value=0.0),)]


def test_a_guess_that_got_lost_is_quarantined_and_not_taken_for_a_wrong_one() -> None:
    lost = FakeEngine(lambda request: Failure(reason="timeout", detail="", retryable=True))
    (outcome,) = run(Blind(BlindConfig()), [RED], teacher=lost)
    assert isinstance(outcome, Quarantined)
    assert outcome.reason == "timeout"
    assert outcome.sample is not None
    assert outcome.sample.images == (PICTURE,)


def test_all_answers_of_an_image_are_scored_in_one_call_after_the_prompt_they_answer() -> None:
    scorer = FakeEngine(lambda request: Reply(text=""), likelihood=length)
    found = run(Loss(), [RED, LONG], scorer=scorer)
    assert labels(found) == [(Label(name="loss", value=1.5),), (Label(name="loss", value=15.0),)]
    (scorings,) = scorer.scored
    assert [[turn.text for turn in scoring.turns] for scoring in scorings] == [
        ["What color?\nAnswer with a word or phrase.", "red"],
        ["What color?\nExplain briefly, then answer.", "It is like a rose. Answer: red"],
    ]
    assert all(scoring.images == (PICTURE,) for scoring in scorings)
    assert all(isinstance(scoring.turns[0].content[0], ImageSlot) for scoring in scorings)
    call = found[0].sample.calls[-1]  # type: ignore[union-attr]
    assert (call.stage, call.key) == ("loss", scorings[0].key("fake"))


def test_what_cannot_be_scored_is_quarantined_and_the_others_go_on() -> None:
    scorer = FakeEngine(lambda request: Reply(text=""), likelihood=length)
    found = run(Loss(), [BLUE, RED], scorer=scorer)
    assert told(found) == [("Quarantined", "too_long"), ("Emitted", "")]


def rewriting(policy: Policy) -> Rewrite:
    return Rewrite(RewriteConfig(), policy, JudgeConfig(), [Blind(BlindConfig()), Loss()])


def said(request: Request) -> Reply:
    return Reply(text="blue" if "Correct" in prompt_of(request) else "red")


POOR = (
    replace(RED, score=Score(overall=5), decision="rewrite").with_label("loss", 9.0).with_label("blind", 1.0)
)


def test_a_rewrite_is_labelled_anew() -> None:
    scorer = FakeEngine(lambda request: Reply(text=""), likelihood=length)
    (outcome,) = run(rewriting(Policy()), [POOR], teacher=FakeEngine(said), scorer=scorer)
    assert isinstance(outcome, Emitted)
    assert (outcome.sample.answer, outcome.sample.label("loss"), outcome.sample.label("blind")) == (
        "blue",
        2.0,
        0.0,
    )
    assert [call.stage for call in outcome.sample.calls] == ["rewrite", "blind", "loss", "rewrite.judge"]


@pytest.mark.parametrize(
    ("policy", "score", "fate"),
    [
        (Policy(max_loss=1.9), length, ("Dropped", "rewrite_loss_high")),
        (Policy(max_loss=2.0), length, ("Emitted", "")),
        (Policy(), lambda scoring: Failure(reason="no_span", detail=""), ("Quarantined", "no_span")),
    ],
)
def test_a_rewrite_passes_the_same_filters(policy: Policy, score: object, fate: tuple[str, str]) -> None:
    scorer = FakeEngine(lambda request: Reply(text=""), likelihood=score)  # type: ignore[arg-type]
    (outcome,) = run(rewriting(policy), [POOR], teacher=FakeEngine(said), scorer=scorer)
    assert told([outcome]) == [fate]
    assert isinstance(outcome, Emitted) or outcome.stage == "rewrite"  # type: ignore[union-attr]


def test_labels_survive_a_journey_through_json() -> None:
    labelled = RED.with_label("loss", 0.5).with_label("blind", 1.0).with_label("loss", 0.25)
    assert Sample.from_json(labelled.to_json()) == labelled
    assert labelled.labels == (Label(name="blind", value=1.0), Label(name="loss", value=0.25))


STAGES = ("ask", "styles", "answer", "blind", "loss", "judge", "decide", "merge")


@pytest.mark.parametrize(
    ("policy", "stages"),
    [
        (Policy(max_loss=2.5), tuple(name for name in STAGES if name != "loss")),
        (Policy(blind="drop"), tuple(name for name in STAGES if name != "blind")),
        (Policy(blind="cap"), tuple(name for name in STAGES if name != "blind")),
        (Policy(max_loss=2.5), ("ask", "styles", "answer", "judge", "decide", "loss", "merge")),
    ],
)
def test_a_policy_on_a_label_that_is_not_there_in_time_is_refused(
    policy: Policy, stages: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match="no stage measures it before the decision"):
        JourneyConfig(prompts="nano", stages=stages, policy=policy)


def test_the_loss_needs_an_engine_that_gives_likelihoods() -> None:
    stages = build_stages(JourneyConfig(prompts="nano", stages=STAGES), Tree.load("windtunnel"), NANO)
    can, cannot = FakeEngine(lambda request: Reply(text=""), likelihood=length), saying("")
    check_engines(stages, {"teacher": cannot, "judge": cannot, "scorer": can})
    with pytest.raises(UserError, match="gives none"):
        check_engines(stages, {"teacher": cannot, "judge": cannot, "scorer": cannot})
    with pytest.raises(UserError, match="needs a scorer"):
        check_engines(stages, {"teacher": cannot, "judge": cannot})
