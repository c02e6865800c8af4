from __future__ import annotations

import pytest
from synth_fakes import by_prompt, outcomes_of, saying, seen, told

from infinity_mm.engines.base import Reply
from infinity_mm.errors import UserError
from infinity_mm.record import Dropped, Emitted
from infinity_mm.synth.answer import Answer, AnswerConfig, read_answer
from infinity_mm.synth.exchange import Rejected
from infinity_mm.synth.styles import Styles, StylesConfig

CONFIG = AnswerConfig()


def read(text: str) -> str:
    result = read_answer(Reply(text=text), CONFIG)
    return f"({result.reason})" if isinstance(result, Rejected) else result


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (" Three. ", "Three."),
        ("10, 10, 10, 10", "10, 10, 10, 10"),
        ("I can see three dogs.", "I can see three dogs."),
        (" ".join(str(number) for number in range(3000)), "(too_long)"),
    ],
)
def test_an_answer_is_read_or_the_reason_is_named(reply: str, answer: str) -> None:
    assert read(reply) == answer


def test_a_question_becomes_one_child_per_style_that_suits_its_type() -> None:
    names = ("short", "brief", "detailed")
    stage = Styles(StylesConfig(names=names), {"x/y/kind": ("short", "brief"), "x/y/long": ("detailed",)})
    question = seen("a.q0", question="What is it?", instruction_type="x/y/kind")
    free = seen("a.q1", question="Why?", instruction_type="x/y/other")
    outcomes = outcomes_of(stage, [question, free], saying(""))
    made = [(o.sample.id, o.sample.parents, o.sample.style) for o in outcomes if isinstance(o, Emitted)]
    assert made == [
        ("a.q0.short", ("a.q0",), "short"),
        ("a.q0.brief", ("a.q0",), "brief"),
        ("a.q1.short", ("a.q1",), "short"),
        ("a.q1.brief", ("a.q1",), "brief"),
        ("a.q1.detailed", ("a.q1",), "detailed"),
    ]


def test_a_type_may_be_answered_in_all_styles_if_so_configured() -> None:
    stage = Styles(StylesConfig(names=("short", "detailed"), suit_the_type=False), {"x/y/kind": ("short",)})
    outcomes = outcomes_of(stage, [seen("a.q0", instruction_type="x/y/kind")], saying(""))
    assert len(outcomes) == 2


def test_a_question_that_no_configured_style_suits_is_dropped() -> None:
    stage = Styles(StylesConfig(names=("detailed",)), {"x/y/kind": ("short",)})
    assert told(outcomes_of(stage, [seen("a.q0", instruction_type="x/y/kind")], saying(""))) == [
        ("Dropped", "no_suitable_style")
    ]


def test_a_style_that_suits_no_type_needs_no_prompt() -> None:
    assert Styles(StylesConfig(), {"x/y/kind": ("short",)}).prompts == {"answer_short"}
    assert Styles(StylesConfig(), {"x/y/kind": ("short", "full")}).prompts == {"answer_short", "answer_full"}


def test_styles_are_given_once() -> None:
    with pytest.raises(UserError, match="has a name twice"):
        StylesConfig(names=("short", "short"))


def test_answers_in_all_styles_are_asked_for_in_one_call_each_with_its_room() -> None:
    engine = by_prompt({"word or phrase": "Three", "briefly": "Counting them. Answer: 3"})
    samples = [seen(f"a.q0.{style}", question="How many?", style=style) for style in ("short", "brief")]
    outcomes = outcomes_of(Answer(CONFIG), samples, engine)
    assert [o.sample.answer for o in outcomes if isinstance(o, Emitted)] == [
        "Three",
        "Counting them. Answer: 3",
    ]
    assert [[request.max_new_tokens for request in batch] for batch in engine.batches] == [[64, 256]]
    assert [o.sample.calls[0].prompt.split("@")[0] for o in outcomes if isinstance(o, Emitted)] == [
        "nano/answer_short",
        "nano/answer_brief",
    ]


def test_what_is_read_off_a_picture_may_be_in_any_language() -> None:
    sign = "禁止停车\uff0c违者罚款"
    stage = Answer(CONFIG, any_language=["fine/text/sign"])
    asked = [
        seen(f"a.q{n}.short", question="What does it say?", style="short", instruction_type=type_)
        for n, type_ in enumerate(("fine/text/sign", "fine/a/color"))
    ]
    assert told(outcomes_of(stage, asked, saying(sign))) == [("Emitted", ""), ("Dropped", "wrong_language")]


def test_a_refused_answer_is_dropped_with_what_was_said() -> None:
    (outcome,) = outcomes_of(
        Answer(CONFIG), [seen("a.q0.short", question="Who?", style="short")], saying("I cannot tell.")
    )
    assert told([outcome]) == [("Dropped", "refusal")]
    assert isinstance(outcome, Dropped)
    assert outcome.detail == "I cannot tell."
    assert outcome.sample is not None
    assert outcome.sample.answer is None
