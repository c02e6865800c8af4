"""Repeated questions about one image: dropped, or asked again with what was asked."""

from __future__ import annotations

import asyncio

from synth_fakes import FakeEngine, context, prompt_of, saying, seen, told

from infinity_mm.engines.base import Failure, Reply
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Dropped, Emitted, Outcome, Sample, settle
from infinity_mm.synth.ask import Ask, AskConfig
from infinity_mm.synth.distinct import Distinct, DistinctConfig

ASK = Ask(AskConfig(), {})
ONCE = Distinct(DistinctConfig(), ASK)
AGAIN = Distinct(DistinctConfig(ask_again=True), ASK)


def asked(*questions: str) -> list[Sample]:
    return [
        seen(f"a.q{n}", instruction_type="fine/a/color", examples=("Is it A?", "Is it B?"), question=question)
        for n, question in enumerate(questions)
    ]


def run(stage: Distinct, samples: list[Sample], engine: FakeEngine) -> list[Outcome]:
    outcomes = asyncio.run(stage.run(samples, context(engine, prompts=PromptSet.load("default"))))
    settle("distinct", [sample.id for sample in samples], outcomes)
    return outcomes


def questions(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.sample.question for outcome in outcomes if isinstance(outcome, Emitted)]


def test_the_first_of_two_questions_goes_on_and_no_model_is_asked() -> None:
    engine = saying("")
    outcomes = run(ONCE, asked("How many dogs?", "How many cats?", "how many dogs are there?"), engine)
    assert told(outcomes) == [("Emitted", ""), ("Emitted", ""), ("Dropped", "duplicate_question")]
    assert (engine.batches, ONCE.roles, ONCE.prompts) == ([], frozenset(), frozenset())


def test_a_repeat_is_asked_again_in_one_call_and_told_what_was_asked() -> None:
    engine = saying("What color is the door?")
    outcomes = run(AGAIN, asked("How many dogs?", "How many dogs?", "How many cats?"), engine)
    assert questions(outcomes) == ["How many dogs?", "What color is the door?", "How many cats?"]
    ((request,),) = engine.batches
    assert "asked about this image already:\n- How many dogs?\n- How many cats?\n" in prompt_of(request)
    assert (request.draw, request.temperature) == (1, 0.7)
    (call,) = next(o.sample.calls for o in outcomes if isinstance(o, Emitted) and o.sample.id == "a.q1")
    assert (call.stage, call.prompt.split("@")[0]) == ("distinct", "default/ask_again")


def test_a_new_question_that_repeats_too_is_given_up() -> None:
    engine = saying("How many dogs are in the picture?")
    outcomes = run(AGAIN, asked("How many dogs?", "How many dogs?"), engine)
    (_, dropped) = outcomes
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.detail) == ("duplicate_question", "asked again, repeats a.q0")


def test_two_repeats_that_get_the_same_new_question_count_in_the_order_of_the_plan() -> None:
    engine = saying("Is the door open?")
    outcomes = run(AGAIN, asked("How many dogs?", "How many dogs?", "How many dogs?"), engine)
    assert told(outcomes) == [("Emitted", ""), ("Emitted", ""), ("Dropped", "duplicate_question")]


def test_what_is_no_question_the_second_time_ends_as_the_repeat_it_was() -> None:
    (_, dropped) = run(AGAIN, asked("How many dogs?", "How many dogs?"), saying("NONE"))
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.detail) == (
        "duplicate_question",
        "repeats a.q0; asked again: nothing_to_ask",
    )


def test_a_failed_second_call_costs_only_its_own_sample() -> None:
    def say(_: object) -> Reply | Failure:
        return Failure(reason="timeout", detail="60 s")

    outcomes = run(AGAIN, asked("How many dogs?", "How many dogs?", "Is it red?"), FakeEngine(say))
    assert told(outcomes) == [("Emitted", ""), ("Quarantined", "timeout"), ("Emitted", "")]
