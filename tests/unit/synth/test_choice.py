"""Multiple choice: options, their order, what a student is trained on, and what the filters make of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synth_fakes import FakeEngine, context, prompt_of, seen, told

from infinity_mm.engines.base import Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Emitted, Outcome, Sample, Score, Text, rng_for, settle
from infinity_mm.synth.answer import Answer, AnswerConfig
from infinity_mm.synth.blind import Blind, BlindConfig
from infinity_mm.synth.choice import (
    ChoiceConfig,
    arrange,
    distinct_wrong,
    is_option,
    letter_of,
    option_text,
    stem,
)
from infinity_mm.synth.judge import JudgeConfig
from infinity_mm.synth.merge import Merge, MergeConfig
from infinity_mm.synth.rewrite import Rewrite, RewriteConfig
from infinity_mm.synth.stage import Stage
from infinity_mm.synth.styles import Styles, StylesConfig

DEFAULT = PromptSet.load("default")
ASKED = seen("a.q0.choice", parents=("a.q0",), question="What color is the door?", style="choice")
MADE = "What color is the door?\nA. blue\nB. red\nC. green\nD. grey"
CHOSEN = seen("a.q0.choice", parents=("a.q0",), question=MADE, style="choice", answer="B. red")


def run(stage: Stage, samples: list[Sample], engine: FakeEngine) -> list[Outcome]:
    outcomes = asyncio.run(stage.run(samples, context(engine, prompts=DEFAULT)))
    settle(stage.name, [sample.id for sample in samples], outcomes)
    return outcomes


def answering(short: str, wrong: list[str]) -> FakeEngine:
    def say(request: Request) -> Reply:
        if "multiple-choice" in prompt_of(request):
            return Reply(text=json.dumps({"wrong": wrong}))
        return Reply(text=short)

    return FakeEngine(say)


def test_a_choice_is_the_short_answer_among_wrong_ones() -> None:
    engine = answering("Red.", ["blue", "green", "grey", "white"])
    (outcome,) = run(Answer(AnswerConfig()), [ASKED], engine)
    assert isinstance(outcome, Emitted)
    first, *options = (outcome.sample.question or "").split("\n")
    assert first == "What color is the door?"
    assert [line[:3] for line in options] == ["A. ", "B. ", "C. ", "D. "]
    assert sorted(line[3:] for line in options) == ["Red", "blue", "green", "grey"]
    assert outcome.sample.answer == next(line for line in options if "Red" in line)
    assert [call.stage for call in outcome.sample.calls] == ["answer", "answer.options"]
    asked, told_it = (prompt_of(batch[0]) for batch in engine.batches)
    assert asked == DEFAULT.render("answer_short", question="What color is the door?")
    assert "Right answer: Red\n" in told_it


def test_a_choice_and_the_short_answer_to_its_question_are_one_request() -> None:
    engine = answering("Red.", ["blue", "green", "grey"])
    short = seen("a.q0.short", parents=("a.q0",), question="What color is the door?", style="short")
    run(Answer(AnswerConfig()), [short, ASKED], engine)
    first, second = engine.batches[0]
    assert first.key("fake") == second.key("fake")


def test_an_option_in_another_language_than_the_right_one_goes() -> None:
    engine = answering("Red.", ["蓝色", "blue", "green"])
    assert told(run(Answer(AnswerConfig()), [ASKED], engine)) == [("Dropped", "options_not_distinct")]
    engine = answering("出口", ["入口", "停车", "小心"])
    assert told(run(Answer(AnswerConfig()), [ASKED], engine)) == [("Emitted", "")]


def test_other_styles_cost_no_call_for_options() -> None:
    engine = answering("Red.", [])
    plain = seen("a.q0.short", question="What color?", style="short")
    assert told(run(Answer(AnswerConfig()), [plain], engine)) == [("Emitted", "")]
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("short", "wrong", "reason"),
    [
        ("Yes.", ["No", "Maybe", "Never", "Often"], "answer_is_no_option"),
        ("red\nand blue", ["a b", "c d", "e f"], "answer_is_no_option"),
        (" ".join(f"word{n}" for n in range(40)), ["blue", "green", "grey"], "answer_is_no_option"),
        ("red", ["Red", "dark red", "blue", "green"], "options_not_distinct"),
        ("red", ["blue", "Blue.", "green", "the green"], "options_not_distinct"),
    ],
)
def test_what_gives_no_fair_choice_is_dropped_by_name(short: str, wrong: list[str], reason: str) -> None:
    outcomes = run(Answer(AnswerConfig()), [ASKED], answering(short, wrong))
    assert told(outcomes) == [("Dropped", reason)]


@given(st.lists(st.text(max_size=12), max_size=8), st.text(max_size=12))
def test_options_never_say_the_same_twice(replies: list[str], right: str) -> None:
    text = option_text(right)
    if text is None:
        return
    wrong = distinct_wrong(text, replies, 3)
    assert len(wrong) <= 3
    assert len({option.casefold() for option in (text, *wrong)}) == len(wrong) + 1


def test_the_right_letter_is_as_likely_to_be_any() -> None:
    answers = [
        arrange("Why?", "r", ["x", "y", "z"], rng_for(0, "answer.options", f"{n:016x}.q0.choice"))[1]
        for n in range(4000)
    ]
    letters = Counter(answer[0] for answer in answers)
    expected = 1000.0
    chi_squared = sum((letters[letter] - expected) ** 2 / expected for letter in "ABCD")
    assert letters.total() == 4000
    assert (
        chi_squared < 11.34
    )  # the 1 % point with three degrees of freedom; the draws are the same in every run


def test_a_student_is_asked_for_letter_and_text() -> None:
    (conversation, _) = run(Merge(MergeConfig()), [CHOSEN], answering("", []))
    assert isinstance(conversation, Emitted)
    user, assistant = conversation.sample.turns
    assert user.text == f"{MADE}\nAnswer with the letter and the text of the right option."
    assert assistant.content == (Text("B. red"),)


def test_a_choice_and_the_same_question_without_options_are_never_in_one_conversation() -> None:
    short = seen(
        "a.q0.short", parents=("a.q0",), question="What color is the door?", style="short", answer="red"
    )
    outcomes = run(Merge(MergeConfig()), [short, CHOSEN], answering("", []))
    assert [len(o.sample.turns) for o in outcomes if isinstance(o, Emitted)] == [2, 2]
    assert stem(CHOSEN) == short.question


@pytest.mark.parametrize(
    ("guess", "found"),
    [("B", 1.0), ("(B)", 1.0), ("B. red", 1.0), ("red", 1.0), ("A", 0.0), ("A. blue", 0.0), ("blue", 0.0)],
)
def test_a_guess_without_the_image_counts_by_its_letter_or_its_text(guess: str, found: float) -> None:
    (outcome,) = run(Blind(BlindConfig()), [CHOSEN], answering(guess, []))
    assert isinstance(outcome, Emitted)
    assert outcome.sample.label("blind") == found


def test_a_word_that_begins_with_a_letter_is_no_letter() -> None:
    assert [letter_of(text) for text in ("Blue", "A door", "C", "b.")] == [None, "A", "C", None]


@pytest.mark.parametrize(
    ("repaired", "reason"), [("C. green", ""), ("It is green.", "rewrite_not_an_option")]
)
def test_a_choice_is_repaired_into_another_option_or_not_at_all(repaired: str, reason: str) -> None:
    def say(request: Request) -> Reply:
        return Reply(text="9" if "Grade" in prompt_of(request) else repaired)

    stage = Rewrite(RewriteConfig(), Policy(), JudgeConfig())
    (outcome,) = run(stage, [ASKED_AGAIN], FakeEngine(say))
    assert getattr(outcome, "reason", "") == reason
    assert is_option(MADE, "C. green")


def test_one_long_option_may_be_repaired_into_another() -> None:
    options = (
        "A. It is used to cut bread into thin slices\nB. People hang their wet coats on these hooks here"
    )
    old, new = options.split("\n")
    poor = replace(ASKED_AGAIN, question=f"What for?\n{options}", answer=old)
    stage = Rewrite(RewriteConfig(), Policy(), JudgeConfig())
    for said, fate in ((new, ("Emitted", "")), (old, ("Dropped", "rewrite_unchanged"))):
        engine = FakeEngine(lambda request, s=said: Reply(text="9" if "Grade" in prompt_of(request) else s))
        assert told(run(stage, [poor], engine)) == [fate]


ASKED_AGAIN = seen(
    "a.q0.choice",
    parents=("a.q0",),
    question=MADE,
    style="choice",
    answer="B. red",
    decision="rewrite",
    score=Score(overall=4),
)


def test_the_style_declares_the_prompts_of_its_two_calls() -> None:
    stage = Styles(StylesConfig(names=("choice",)), {})
    assert stage.prompts == {"answer_choice", "answer_short", "options", "repair"}
    assert stage.prompts <= set(DEFAULT.texts)
    assert stage.prompts <= set(PromptSet.load("chinese").texts)


def test_a_number_of_options_that_is_no_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r"choice\.num_options between 2 and 8"):
        ChoiceConfig(num_options=1)
