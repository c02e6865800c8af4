from __future__ import annotations

import asyncio

import pytest
from synth_fakes import FakeEngine, context, outcomes_of, prompt_of, saying, seen, told

from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Dropped, Emitted, ImageSlot, Text, seed_for
from infinity_mm.synth.ask import Ask, AskConfig, read_question, type_text
from infinity_mm.synth.exchange import Rejected
from infinity_mm.synth.stages import STAGES, JourneyConfig
from infinity_mm.taxonomy.tree import Tree

CONFIG = AskConfig()
STAGE = Ask(CONFIG, {})
ASKED = seen("a.q0", instruction_type="fine/attribute/color", examples=("What color is it?", "Is it red?"))


def read(text: str, *examples: str) -> str:
    result = read_question(Reply(text=text), examples=examples, config=CONFIG)
    return f"({result.reason})" if isinstance(result, Rejected) else result


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("How many dogs are there?", "How many dogs are there?"),
        ("  Question: How many dogs?\n", "How many dogs?"),
        ("**Question:** How many dogs?", "How many dogs?"),
        ("Q: How many dogs?", "How many dogs?"),
        ("1. How many dogs?", "How many dogs?"),
        ('- "How many dogs?"', "How many dogs?"),
        ("Name the color of the large circle.", "Name the color of the large circle."),
        ("图中有几只狗\uff1f 都在哪里\uff1f", "图中有几只狗\uff1f 都在哪里\uff1f"),
        ('Does the sign say "A" or "B"?', 'Does the sign say "A" or "B"?'),
        ("How many dogs?\nAnswer: 3", "(several_lines)"),
        ("There are three dogs.", "(no_question_in_reply)"),
        ("NONE", "(nothing_to_ask)"),
        ("Why?", "(too_short)"),
        ("Why" + "y" * 400 + "?", "(too_long)"),
        ("what COLOR is it ?", "(copied_example)"),
    ],
)
def test_a_question_is_read_or_the_reason_is_named(reply: str, question: str) -> None:
    assert read(reply, "What color is it?") == question


def test_a_question_that_did_not_fit_is_dropped_as_cut_off() -> None:
    cut = FakeEngine(lambda request: Reply(text="How many dogs?", finish_reason="length"))
    assert told(outcomes_of(STAGE, [ASKED], cut)) == [("Dropped", "cut_off")]


def test_a_copy_of_an_example_may_be_allowed() -> None:
    lenient = AskConfig(drop_copied_examples=False)
    reply = Reply(text="What color is it?")
    assert read_question(reply, examples=("What color is it?",), config=lenient) == "What color is it?"


def test_the_image_comes_before_the_prompt_and_the_seed_depends_on_the_sample() -> None:
    engine = saying("How many dogs?")
    outcomes_of(STAGE, [ASKED], engine)
    (request,) = engine.batches[0]
    prompt = "Ask a question of type fine/attribute/color. Examples:\nWhat color is it?\nIs it red?"
    assert request.turns[-1].content == (ImageSlot(0), Text(prompt))
    assert (request.temperature, request.seed) == (0.7, seed_for(7, "ask", "a.q0"))


def test_all_questions_about_an_image_are_asked_for_in_one_call() -> None:
    engine = saying("How many dogs?")
    other = seen("a.q1", instruction_type="x/y/z", examples=("Is it A?", "Is it B?"))
    outcomes_of(STAGE, [ASKED, other], engine)
    assert [len(batch) for batch in engine.batches] == [2]


def test_ask_writes_the_question_and_where_it_comes_from() -> None:
    (outcome,) = outcomes_of(STAGE, [ASKED], saying("How many dogs?"))
    assert isinstance(outcome, Emitted)
    assert outcome.sample.question == "How many dogs?"
    (call,) = outcome.sample.calls
    assert (call.stage, call.model, call.temperature) == ("ask", "fake", 0.7)
    assert call.prompt.startswith("nano/ask@")


@pytest.mark.parametrize(
    ("text", "is_question"),
    [
        ("Order the boxes from small to large.", True),
        ("Sum up the article in two sentences.", True),
        ("Order and calm reign in the room.", False),
        ("用一句话概括这幅图像。", True),
        ("给这张照片取一个标题。", True),
        ("图中有两只狗。", False),
    ],
)
def test_a_task_is_a_question_and_a_statement_is_none(text: str, is_question: bool) -> None:
    result = read_question(Reply(text=text), examples=(), config=AskConfig())
    assert (result == text) == is_question


def test_ask_drops_a_reply_without_a_question_and_keeps_the_reply_to_look_at() -> None:
    (outcome,) = outcomes_of(STAGE, [ASKED], saying("There are three dogs."))
    assert isinstance(outcome, Dropped)
    assert (outcome.id, outcome.reason) == ("a.q0", "no_question_in_reply")
    assert outcome.sample is not None
    assert outcome.sample.question == "There are three dogs."


def test_one_failed_call_and_one_odd_sample_leave_the_others_alone() -> None:
    lonely = seen("a.q1", instruction_type="x/y/z", examples=("Only one?",))
    failing = seen("a.q2", instruction_type="bad", examples=("Is it A?", "Is it B?"))

    def say(request: Request) -> Reply | Failure:
        is_bad = "bad" in prompt_of(request)
        return Failure(reason="timeout", detail="60 s") if is_bad else Reply(text="How many?")

    outcomes = outcomes_of(STAGE, [lonely, ASKED, failing], FakeEngine(say))
    assert told(outcomes) == [("Quarantined", "ValueError"), ("Emitted", ""), ("Quarantined", "timeout")]


def test_half_an_emoji_in_a_reply_is_quarantined_because_no_file_format_takes_it() -> None:
    assert told(outcomes_of(STAGE, [ASKED], saying("Is it \ud83d?"))) == [("Quarantined", "invalid_unicode")]


def test_a_type_is_described_where_a_definition_is_known() -> None:
    definitions = {"fine_single/attribute/color": "Name the color of an object."}
    assert (
        type_text("fine_single/attribute/color", definitions)
        == "fine single > attribute > color (Name the color of an object.)"
    )
    assert type_text("a/b/c", definitions) == "a/b/c"


def test_the_teacher_and_the_critic_are_told_what_the_image_must_show() -> None:
    path, config = "attribute/material/made_of", JourneyConfig()
    tree = Tree.load("default")
    asked = seen("a.q0", instruction_type=path, examples=("Is it A?", "Is it B?"), question="Is it wood?")
    for name in ("ask", "critic"):
        engine = saying("What is it made of?")
        asyncio.run(
            STAGES[name](config, tree).run([asked], context(engine, prompts=PromptSet.load("default")))
        )
        shown = "made of (Name the material of a thing. The image must show: Something whose material shows.)"
        assert shown in prompt_of(engine.batches[0][0])
