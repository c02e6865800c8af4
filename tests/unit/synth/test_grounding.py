"""Boxes and points: read in every family's form, checked, kept from 0 to 1, and written again for a student."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synth_fakes import FakeEngine, context, prompt_of, saying, seen, told

from infinity_mm.data.readers.stored import chat_messages
from infinity_mm.data.regions import find_numbers, parts_of, region_marker, text_of, write_regions
from infinity_mm.engines import prompting
from infinity_mm.engines.base import Reply, Request
from infinity_mm.families import FAMILIES
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Emitted, ImageRef, ImageSlot, Outcome, Region, Sample, Score, Tag, settle
from infinity_mm.synth.answer import Answer, AnswerConfig
from infinity_mm.synth.ask import Ask, AskConfig
from infinity_mm.synth.dedup_pass import pairs_of
from infinity_mm.synth.exchange import Rejected
from infinity_mm.synth.grounding import GroundingConfig, mark_box, read_region
from infinity_mm.synth.loss import scoring_of
from infinity_mm.synth.merge import Merge, MergeConfig
from infinity_mm.synth.publish import row
from infinity_mm.synth.rewrite import Rewrite, RewriteConfig
from infinity_mm.synth.stage import Stage
from infinity_mm.synth.stages import STAGES, JourneyConfig
from infinity_mm.taxonomy.plan_pass import PlanConfig, Planner
from infinity_mm.taxonomy.tree import Tree
from infinity_mm.windtunnel.questions import questions
from infinity_mm.windtunnel.world import sample_scene

DEFAULT = PromptSet.load("default")
IMAGE = ImageRef(sha256="ab" * 32, uri="/a.png", width=640, height=400, phash="0" * 16)
THOUSANDTHS = GroundingConfig()
UNITS = {None: "pixels", 1000: "thousandths", 100: "fractions"}
BOX = "<|region 0 0.120000 0.080000 0.340000 0.160000|>"


def run(stage: Stage, samples: list[Sample], engine: FakeEngine) -> list[Outcome]:
    outcomes = asyncio.run(stage.run(samples, context(engine, prompts=DEFAULT)))
    settle(stage.name, [sample.id for sample in samples], outcomes)
    return outcomes


@pytest.mark.parametrize(
    "text",
    [
        "[120, 80, 340, 160]",
        "It is at [120,80,340,160].",
        "<box>[[120, 80, 340, 160]]</box>",
        "(120,80),(340,160)",
        "<|box_start|>(120,80),(340,160)<|box_end|>",
        '```json\n[\n{"bbox_2d": [120, 80, 340, 160], "label": "the 2nd cup"}\n]\n```',
        '{"x1": 120, "y1": 80, "x2": 340, "y2": 160}',
    ],
)
def test_a_box_is_read_however_it_is_written(text: str) -> None:
    assert read_region(text, 4, [IMAGE], THOUSANDTHS) == Region(0, (0.12, 0.08, 0.34, 0.16))


@pytest.mark.parametrize("text", ['<point x="61.5" y="40.6" alt="cup">cup</point>', "(61.5, 40.6)"])
def test_a_point_is_read_however_it_is_written(text: str) -> None:
    assert read_region(text, 2, [IMAGE], GroundingConfig(units="percent")) == Region(0, (0.615, 0.406))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("On the left.", "no_region"),
        ("[1, 2, 3]", "no_region"),
        ("[[120, 80, 340, 160], [1, 2, 30, 40]]", "several_regions"),
        ("[120, 80, 1340, 160]", "region_outside"),
        ("[-5, 80, 340, 160]", "region_outside"),
        ("[340, 80, 120, 160]", "region_order"),
        ("[120, 160, 340, 80]", "region_order"),
        ("[120, 80, 121, 160]", "region_too_small"),
    ],
)
def test_what_is_no_box_in_the_picture_is_dropped_by_name(text: str, reason: str) -> None:
    assert read_region(text, 4, [IMAGE], THOUSANDTHS) == Rejected(reason=reason)
    sample = seen("a.q0.box", question="Locate the cup.", style="box")
    assert told(run(Answer(AnswerConfig()), [sample], saying(text))) == [("Dropped", reason)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_true_boxes_of_the_drawn_world_are_read_from_every_familys_own_form(family: str) -> None:
    notation = FAMILIES[family].notation
    config = GroundingConfig(units=UNITS[notation.grid])  # pyright: ignore[reportArgumentType]
    num_boxes = 0
    for index in range(6):
        scene = sample_scene(world_seed=3, index=index, split="held_out")
        image = ImageRef(sha256="cd" * 32, uri="/b.png", width=scene.width, height=scene.height)
        for question in questions(scene, random.Random(0)):
            for box in question.boxes:
                truth = (box.x0, box.y0, box.x1, box.y1)
                said = notation.write(truth, (image.width, image.height))
                region = read_region(f"Here: {said}", 4, [image], config)
                assert isinstance(region, Region)
                unit = 0.5 / min(notation.grid or 10_000, image.width, image.height)
                assert region.coords == pytest.approx(truth, abs=unit + 1e-6)
                num_boxes += 1
    assert num_boxes > 20


@given(st.text(max_size=60))
def test_any_text_gives_a_region_in_the_picture_or_a_reason(text: str) -> None:
    region = read_region(text, 4, [IMAGE], THOUSANDTHS)
    assert isinstance(region, Rejected) or all(0 <= value <= 1 for value in region.coords)


@given(st.lists(st.text(max_size=9) | st.just(BOX), max_size=5))
def test_parts_are_the_text_they_came_from(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert text_of(parts_of(text)) == text
    assert len([part for part in parts_of(text) if isinstance(part, Region)]) == text.count(BOX)


def test_numbers_of_other_things_are_no_box() -> None:
    assert find_numbers("3 cups, 2 plates, 1 fork", 4) == []
    assert [group for group, _ in find_numbers("2 cups at [1, 2, 3, 4]", 4)] == [(1, 2, 3, 4)]


def test_of_several_images_nobody_knows_which_a_region_is_in() -> None:
    pages = replace(seen("a.q0.box", question="Locate the cup.", style="box"), images=(IMAGE, IMAGE))
    outcomes = run(Answer(AnswerConfig()), [pages], saying("[120, 80, 340, 160]"))
    assert told(outcomes) == [("Dropped", "region_of_several_images")]
    planner = Planner(PlanConfig(tree="grounding", min_fit=0.0, top_k=300), seed=0)
    tags = (Tag(name="bicycle", score=1.0), Tag(name="sign", score=1.0))
    gone = planner.suitable(tags).keys() - planner.suitable(tags, num_images=2).keys()
    assert {path.rpartition("/")[2] for path in gone} == {"box_of_thing", "text_in_box"}


def test_a_box_goes_from_the_teachers_reply_to_the_students_own_form() -> None:
    sample = seen("a.q0.box", parents=("a.q0",), question="Locate the cup.", style="box")
    (answered,) = run(Answer(AnswerConfig()), [sample], saying('{"bbox_2d": [120, 80, 340, 160]}'))
    assert isinstance(answered, Emitted)
    assert answered.sample.answer == BOX
    (merged, _) = run(Merge(MergeConfig()), [answered.sample], saying(""))
    assert isinstance(merged, Emitted)
    assert merged.sample.turns[1].content == (Region(0, (0.12, 0.08, 0.34, 0.16)),)
    assert Sample.from_json(merged.sample.to_json()) == merged.sample
    published = row(merged.sample, [answered.sample], NoBytes())["messages"]
    _, assistant = chat_messages(published)
    written = {
        name: write_regions(assistant.text, FAMILIES[name].notation, [(640, 400)]) for name in FAMILIES
    }
    assert written["qwen3_vl"] == '{"bbox_2d": [120, 80, 340, 160]}'
    assert written["qwen2_5_vl"] == '{"bbox_2d": [77, 32, 218, 64]}'


class NoBytes:
    def read(self, image: ImageRef) -> bytes:
        return b"\x89PNG"


def test_a_question_about_a_box_keeps_it_as_one_and_every_model_is_shown_numbers() -> None:
    path = "fine_single/grounding/text_in_box"
    asked = seen("a.q0", instruction_type=path, examples=("Is it A?", "Is it B?"))
    stage = STAGES["ask"](JourneyConfig(), Tree.load("grounding"))
    (outcome,) = run(stage, [asked], saying("What is written in [120, 80, 340, 160]?"))
    assert isinstance(outcome, Emitted)
    assert outcome.sample.question == f"What is written in {BOX}?"
    engine = saying("EXIT")
    run(Answer(AnswerConfig()), [replace(outcome.sample, style="short")], engine)
    ((request,),) = engine.batches
    (message,) = [m for m in prompting.chat_messages(request.turns, request.images) if m["role"] == "user"]
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"].startswith("What is written in [120, 80, 340, 160]?\nAnswer with")


def test_a_question_that_should_be_about_a_box_and_is_not_is_dropped() -> None:
    stage = Ask(AskConfig(), {}, boxed=["x/y/z"])
    asked = seen("a.q0", instruction_type="x/y/z", examples=("Is it A?", "Is it B?"))
    assert told(run(stage, [asked], saying("What is written on the sign?"))) == [("Dropped", "no_region")]


def test_the_mark_takes_the_place_of_the_numbers_and_their_brackets() -> None:
    text = "Read <box>[[120, 80, 340, 160]]</box>, please."
    assert mark_box(text, [IMAGE], THOUSANDTHS) == f"Read {BOX}, please."


def test_two_boxes_are_two_answers_where_conversations_are_compared() -> None:
    boxes = [region_marker(Region(0, (0.1, 0.1, corner, 0.5))) for corner in (0.3, 0.4)]
    talks = []
    for box in boxes:
        pair = seen("a.q0.box", parents=("a.q0",), question="Locate the cup.", style="box", answer=box)
        (merged, _) = run(Merge(MergeConfig()), [pair], saying(""))
        assert isinstance(merged, Emitted)
        talks.append(pairs_of(merged.sample))
    assert talks[0] != talks[1]


def test_a_box_is_scored_as_the_text_a_model_would_write() -> None:
    pair = seen("a.q0.box", parents=("a.q0",), question="Locate the cup.", style="box", answer=BOX)
    scoring = scoring_of(pair, DEFAULT)
    assert prompting.split_scoring(scoring)[1] == "[120, 80, 340, 160]"
    assert scoring.turns[-2].content[0] == ImageSlot(0)


def test_a_box_between_the_cut_offs_is_not_sent_to_be_repaired() -> None:
    pair = seen(
        "a.q0.box",
        question="Locate the cup.",
        style="box",
        answer=BOX,
        score=Score(overall=5),
        decision="rewrite",
    )

    def never(request: Request) -> Reply:
        raise AssertionError(prompt_of(request))

    config = JourneyConfig()
    stage = Rewrite(RewriteConfig(), config.policy, config.judge)
    assert told(run(stage, [pair], FakeEngine(never))) == [("Dropped", "region_not_repaired")]
