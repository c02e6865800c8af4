from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_fakes import NANO, FakeEngine, context, prompt_of, saying, seen

from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ConservationError, Outcome, Sample
from infinity_mm.runtime.ledger import settle_unit
from infinity_mm.synth.ask import AskConfig
from infinity_mm.synth.exchange import keep
from infinity_mm.synth.journey import Journey, travel
from infinity_mm.synth.journey_pass import unit_result
from infinity_mm.synth.rewrite import RewriteConfig
from infinity_mm.synth.spread import WRITES
from infinity_mm.synth.stage import Context, Stage, check_wiring
from infinity_mm.synth.stages import FILTERS, STAGES, JourneyConfig, build_stages
from infinity_mm.taxonomy.tree import Tree

TREE = Tree.load("windtunnel")
CONFIG = JourneyConfig(prompts="nano", ask=AskConfig(drop_copied_examples=False, describe_type=False))
STAGE_LIST = build_stages(CONFIG, TREE, NANO)
COLOR = {"type": "fine_single/attribute/color", "examples": ["Is it red?", "Is it blue?"]}
PLAN = [COLOR, COLOR]


def kind(request: Request) -> str:
    prompt = prompt_of(request)
    begins = {"Ask a": "ask", "Can this": "check", "Judge": "judge", "Correct": "rewrite"}
    return next((name for start, name in begins.items() if prompt.startswith(start)), "answer")


def good(request: Request) -> Reply:
    """Distinct questions, and answers that the judge likes if the seed is even."""
    match kind(request):
        case "ask":
            return Reply(text=f"What color is number {request.seed % 1000}?", prompt_tokens=10)
        case "check":
            return Reply(text="yes", prompt_tokens=10)
        case "judge":
            return Reply(text="9", prompt_tokens=10)
        case _:
            return Reply(text="red. Answer: red", prompt_tokens=10, completion_tokens=2)


def walk(
    engine: FakeEngine, *, plan: Sequence[object] = PLAN, stages: Sequence[Stage] = STAGE_LIST
) -> Journey:
    return asyncio.run(travel(seen("a"), plan, stages, context(engine)))  # type: ignore[arg-type]


def fates_of(journey: Journey) -> Counter[tuple[str, str]]:
    return Counter((fate.stage, fate.fate) for fate in journey.fates)


def test_two_good_questions_become_three_conversations() -> None:
    journey = walk(FakeEngine(good))
    assert [(s.id, s.parents) for s in journey.samples] == [
        ("a.c0", ("a.q0.short", "a.q1.brief")),
        ("a.c1", ("a.q0.brief", "a.q1.detailed")),
        ("a.c2", ("a.q0.detailed", "a.q1.short")),
    ]
    assert fates_of(journey) == {
        ("spread", "expanded"): 1,
        ("ask", "continued"): 2,
        ("distinct", "continued"): 2,
        ("check", "continued"): 2,
        ("styles", "expanded"): 2,
        ("answer", "continued"): 6,
        ("judge", "continued"): 6,
        ("decide", "continued"): 6,
        ("rewrite", "continued"): 6,
        ("merge", "merged"): 6,
    }
    assert len(journey.pairs) == 6


def test_the_calls_of_an_image_can_be_counted_beforehand() -> None:
    engine = FakeEngine(
        lambda r: Reply(text="5") if kind(r) == "judge" and "blue" not in prompt_of(r) else good(r)
    )
    journey = walk(engine)
    # per question: 1 ask, 1 check, 3 answers, 3 judgements; each of the 6 rewrites comes back unchanged: 1 call
    assert {key: n for key, n in journey.metrics.items() if key.startswith("calls.")} == {
        "calls.ask": 2,
        "calls.check": 2,
        "calls.answer": 6,
        "calls.judge": 6,
        "calls.rewrite": 6,
    }
    assert len(engine.batches) == 5
    assert journey.metrics["prompt_tokens.ask"] == 20


def test_a_rewrite_costs_two_calls() -> None:
    def say(request: Request) -> Reply:
        if kind(request) == "rewrite":
            return Reply(text="blue. Answer: blue")
        return (
            Reply(text="5")
            if kind(request) == "judge" and "blue" not in prompt_of(request)
            else good(request)
        )

    journey = walk(FakeEngine(say), plan=[COLOR])
    assert journey.metrics["calls.rewrite"] == 2 * 3
    assert [pair.answer for pair in journey.pairs] == ["blue. Answer: blue"] * 3


def test_the_same_question_twice_is_answered_once() -> None:
    engine = FakeEngine(lambda r: Reply(text="What color is it?") if kind(r) == "ask" else good(r))
    journey = walk(engine)
    assert [(d.id, d.stage, d.reason) for d in journey.dropped] == [
        ("a.q1", "distinct", "duplicate_question")
    ]
    assert journey.metrics["calls.check"] == 1


def test_an_image_without_a_plan_is_dropped_and_costs_nothing() -> None:
    engine = FakeEngine(good)
    journey = walk(engine, plan=[])
    assert [(d.id, d.stage, d.reason) for d in journey.dropped] == [("a", "spread", "no_type_planned")]
    assert engine.batches == []


class Broken:
    """A stage with a bug, or one that loses a sample."""

    name = "broken"
    reads = writes = roles = prompts = needs_probabilities = frozenset[str]()

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        if self.error:
            raise self.error
        return [keep(sample) for sample in samples[1:]]


def test_what_a_stage_raises_costs_its_samples_and_is_written_down() -> None:
    journey = walk(FakeEngine(good), stages=[*STAGE_LIST[:2], Broken(KeyError("colour"))])
    assert [(q.id, q.stage, q.reason, q.error) for q in journey.quarantined] == [
        ("a.q0", "broken", "KeyError", "KeyError: 'colour'"),
        ("a.q1", "broken", "KeyError", "KeyError: 'colour'"),
    ]
    assert journey.samples == []


def test_an_engine_that_raises_costs_the_samples_that_asked_it() -> None:
    def say(request: Request) -> Reply:
        if kind(request) == "answer":
            raise ConnectionError("gone")
        return good(request)

    journey = walk(FakeEngine(say))
    assert {(q.stage, q.reason) for q in journey.quarantined} == {("answer", "ConnectionError")}


def test_a_stage_that_loses_a_sample_ends_the_run() -> None:
    with pytest.raises(ConservationError, match="no fate for 1 of 2"):
        walk(FakeEngine(good), stages=[*STAGE_LIST[:2], Broken(None)])


def test_a_mistake_in_the_configuration_ends_the_run() -> None:
    texts = {**NANO.texts, "check": "$question $image"}
    wrong = context(FakeEngine(good), prompts=PromptSet(name="mine", texts=texts))
    with pytest.raises(UserError, match="has the fields"):
        asyncio.run(travel(seen("a"), PLAN, STAGE_LIST, wrong))


GARBAGE = (
    "",
    "yes",
    "no",
    "7",
    "10",
    "Score: 3",
    "I'm sorry, but I can't help with that.",
    "Is it red?",
    "What color is the car?",
    "?" * 5000,
    "\x00\x01\ud83d",
    "图中有几只狗\uff1f",
    "Answer: red",
    "red red red red red red red red red red red red",
    "line\nline?",
    "{{{}}}<image>",
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    texts=st.lists(st.text(max_size=60), max_size=4),
    failing=st.floats(0, 0.6),
    num_planned=st.integers(0, 5),
    max_rounds=st.integers(1, 3),
)
def test_whatever_the_models_say_every_sample_has_one_fate_at_every_stage(
    seed: int, texts: list[str], failing: float, num_planned: int, max_rounds: int
) -> None:
    rng = random.Random(seed)

    def say(request: Request) -> Reply | Failure:
        if rng.random() < failing:
            return Failure(reason="http_500", detail="\ud83d down", retryable=True)
        if rng.random() < 0.5:
            return good(request)
        logprobs = rng.choice([None, (), (-1.0,) * len(request.choices), (float("nan"),) * 10, (0.0,) * 3])
        text = rng.choice([*GARBAGE, *texts, *request.choices])
        return Reply(text=text, finish_reason=rng.choice(["stop", "length"]), choice_logprobs=logprobs)

    rewrite = RewriteConfig(max_rounds=max_rounds, temperature=1.0)
    config = JourneyConfig(prompts="nano", ask=CONFIG.ask, rewrite=rewrite)
    journey = walk(FakeEngine(say), plan=[COLOR] * num_planned, stages=build_stages(config, TREE, NANO))
    result = unit_result([seen("a")], [journey])
    _, counts = settle_unit("journeys", "00000", result)
    assert counts["in"] + counts["born"] == sum(
        counts[key] for key in ("out", "expanded", "dropped", "merged", "quarantined")
    )
    for sample in (*journey.samples, *journey.pairs):
        assert Sample.from_json(sample.to_json()) == sample
        sample.to_json().encode()
    for sample in journey.samples:
        assert len(sample.turns) == 2 * len(sample.parents)


def test_the_default_stages_are_wired() -> None:
    check_wiring(STAGE_LIST, start=WRITES)
    assert [stage.name for stage in STAGE_LIST] == [
        name for name in STAGES if name not in (*FILTERS, "critic")
    ]


def test_a_stage_before_what_it_reads_is_refused() -> None:
    with pytest.raises(UserError, match="`check` reads question"):
        build_stages(JourneyConfig(prompts="nano", stages=("check", "ask", "merge")), TREE, NANO)


def test_a_mistyped_stage_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `distinct`"):
        JourneyConfig(stages=("ask", "distint"))


def test_a_stage_is_there_once() -> None:
    with pytest.raises(UserError, match="`ask` is there twice"):
        JourneyConfig(stages=("ask", "ask"))


def test_a_list_that_makes_no_conversations_is_refused() -> None:
    with pytest.raises(UserError, match="put `merge` last"):
        build_stages(JourneyConfig(prompts="nano", stages=("ask", "check")), TREE, NANO)


def test_a_pipeline_without_a_judge_keeps_every_answer() -> None:
    stages = build_stages(
        JourneyConfig(prompts="nano", ask=CONFIG.ask, stages=("ask", "styles", "answer", "merge")), TREE, NANO
    )
    assert len(walk(FakeEngine(good), stages=stages).pairs) == 6


def test_a_prompt_that_the_set_lacks_is_found_before_the_run() -> None:
    texts = {name: text for name, text in NANO.texts.items() if name != "rewrite"}
    with pytest.raises(UserError, match="no prompt `rewrite`"):
        build_stages(CONFIG, TREE, PromptSet(name="mine", texts=texts))


def test_every_request_of_an_image_begins_with_the_same_turns() -> None:
    engine = saying("What color is it?")
    prompts = PromptSet(name="mine", texts={**NANO.texts, "system": "Look closely."})
    asyncio.run(travel(seen("a"), PLAN, STAGE_LIST, context(engine, prompts=prompts)))
    heads = {(r.turns[0], r.turns[1].content[:1]) for batch in engine.batches for r in batch}
    assert len(heads) == 1
