"""Conversations that come with an image, and samples of several images, on their way through synthesis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from synth_fakes import NANO, PICTURE, FakeEngine, context, prompt_of, saying, seen

from infinity_mm.engines.base import Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.record import ImageSlot, Sample, Text, Turn
from infinity_mm.synth.ask import AskConfig
from infinity_mm.synth.dedup_pass import pairs_of
from infinity_mm.synth.journey import Journey, travel
from infinity_mm.synth.merge import conversation
from infinity_mm.synth.outtake import without
from infinity_mm.synth.publish import provenance
from infinity_mm.synth.stage import check_engines
from infinity_mm.synth.stages import JourneyConfig, build_stages
from infinity_mm.taxonomy.tree import Tree

CONFIG = JourneyConfig(prompts="nano", ask=AskConfig(drop_copied_examples=False, describe_type=False))
STAGES = build_stages(CONFIG, Tree.load("windtunnel"), NANO)
COLOR = {"type": "fine_single/attribute/color", "examples": ["Is it red?", "Is it blue?"]}
BROUGHT = (Turn("user", (ImageSlot(0), Text("What is it?"))), Turn("assistant", (Text("A duck."),)))


def good(request: Request) -> Reply:
    prompt = prompt_of(request)
    for start, reply in (("Ask a", "What color is it?"), ("Can this", "yes"), ("Judge", "9")):
        if prompt.startswith(start):
            return Reply(text=reply)
    return Reply(text="Yellow.")


def walk(image: Sample, *, num_questions: int = 1, engine: FakeEngine | None = None) -> Journey:
    plan = [COLOR] * num_questions
    return asyncio.run(travel(image, plan, STAGES, context(engine or FakeEngine(good))))


def test_what_came_with_the_image_stands_first_and_in_one_conversation_only() -> None:
    journey = walk(seen("a", turns=BROUGHT))
    first, *others = journey.samples
    assert first.parents == ("a.source", "a.q0.short")
    assert first.turns[:2] == BROUGHT
    assert first.turns[2] == Turn("user", (Text("What color is it?\nAnswer with a word or phrase."),))
    assert [other.parents for other in others] == [("a.q0.brief",), ("a.q0.detailed",)]
    assert all(ImageSlot(0) in other.turns[0].content for other in others)


def test_it_is_told_apart_from_what_was_made() -> None:
    journey = walk(seen("a", turns=BROUGHT))
    assert "a.source" not in {pair.id for pair in journey.pairs}
    told = provenance(journey.samples[0], [pair for pair in journey.pairs if pair.id == "a.q0.short"])
    assert told["source_turns"] == 2
    assert [pair["id"] for pair in told["pairs"]] == ["a.q0.short"]
    assert "source_turns" not in provenance(conversation(journey.pairs[:1], 0, NANO), journey.pairs[:1])


def test_no_model_is_asked_about_it_and_every_stage_still_adds_up() -> None:
    engine = FakeEngine(good)
    journey = walk(seen("a", turns=BROUGHT), engine=engine)
    assert not any("duck" in prompt_of(request) for batch in engine.batches for request in batch)
    (fate,) = [fate for fate in journey.fates if fate.id == "a.source"]
    assert (fate.stage, fate.fate, fate.into) == ("merge", "merged", ("a.c0",))


@pytest.mark.parametrize("num_questions", [0, 2])
def test_it_stays_where_nothing_was_planned_or_nothing_was_kept(num_questions: int) -> None:
    refusing = FakeEngine(lambda request: Reply(text="no"))
    journey = walk(seen("a", turns=BROUGHT), num_questions=num_questions, engine=refusing)
    assert [(sample.id, sample.turns, sample.parents) for sample in journey.samples] == [
        ("a.c0", BROUGHT, ("a.source",))
    ]


def test_a_question_that_the_source_has_asked_already_is_dropped_by_name() -> None:
    brought = (Turn("user", (ImageSlot(0), Text("what color is it ?"))), BROUGHT[1])
    journey = walk(seen("a", turns=brought))
    assert {dropped.reason for dropped in journey.dropped} == {"asked_in_source"}
    assert [sample.turns for sample in journey.samples] == [brought]


def test_what_came_with_the_image_stays_when_a_pair_is_taken_out_again() -> None:
    journey = walk(seen("a", turns=(Turn("system", (Text("Be brief."),)), *BROUGHT)))
    talk, pairs = journey.samples[0], {pair.id: pair for pair in journey.pairs}
    rest = without(talk, {"a.q0.short"}, pairs)
    assert rest is not None
    assert (rest.turns, rest.parents, rest.calls) == (talk.turns[:3], ("a.source",), ())
    assert without(talk, {"a.q0.brief"}, pairs) is talk


def test_a_system_turn_of_the_source_is_no_question() -> None:
    sample = seen("a", turns=(Turn("system", (Text("Be brief."),)), *BROUGHT))
    assert list(pairs_of(sample)) == [("What is it?", "a duck")]


def test_all_images_of_a_sample_are_shown_in_every_call_and_in_the_first_turn() -> None:
    pages = tuple(replace(PICTURE, sha256=f"{n}" * 64, page=n) for n in range(3))
    engine = FakeEngine(good)
    journey = walk(replace(seen("a"), images=pages), engine=engine)
    assert {request.images for batch in engine.batches for request in batch} == {pages}
    for sample in journey.samples:
        assert [part for part in sample.turns[0].content if isinstance(part, ImageSlot)] == [
            ImageSlot(n) for n in range(3)
        ]


def test_an_engine_that_takes_fewer_images_is_refused_before_the_first_call() -> None:
    engine = replace(saying(""), images=2)
    with pytest.raises(UserError, match=r"shows 3 image\(s\), the teacher takes 2"):
        check_engines(STAGES, {"teacher": engine, "judge": engine}, images=3)
