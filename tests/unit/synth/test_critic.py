"""The question critic: each planted fault is named, labelled, and dropped where the policy says so."""

from __future__ import annotations

import asyncio
import json

import pytest
from synth_fakes import FakeEngine, context, prompt_of, saying, seen, told

from infinity_mm.engines.base import Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy, decide
from infinity_mm.record import Dropped, Emitted, Outcome, Sample, Score, settle
from infinity_mm.synth.critic import RULES, SCHEMA, Critic, CriticConfig
from infinity_mm.synth.stages import STAGES, JourneyConfig
from infinity_mm.taxonomy.tree import Tree

DEFAULT = PromptSet.load("default")
DEFINITIONS = {"fine/attribute/color": "Name a color."}
PLANTED = {
    "not_answerable": "What color is the car that left before the photo?",
    "off_type": "How many doors are there?",
    "answers_itself": "What color is the red door?",
    "overloaded": "In the left half, below the roof, beside the second of three windows, what color is the door?",
    "asks_too_much": "Name the color of everything, explain each, and write a poem.",
    "other_language": "De quelle couleur est la porte ?",
}
GOOD = "What color is the door?"


def critic(policy: Policy | None = None) -> Critic:
    return Critic(CriticConfig(), policy or Policy(), DEFINITIONS)


def question(text: str, number: int = 0) -> Sample:
    return seen(f"a.q{number}", instruction_type="fine/attribute/color", question=text)


def run(stage: Critic, samples: list[Sample], engine: FakeEngine) -> list[Outcome]:
    outcomes = asyncio.run(stage.run(samples, context(engine, prompts=DEFAULT)))
    settle("critic", [sample.id for sample in samples], outcomes)
    return outcomes


def seeing_faults() -> FakeEngine:
    """A judge that finds what was planted, and nothing else."""

    def say(request: Request) -> Reply:
        asked = prompt_of(request).split("Question: ")[1].split("\n")[0]
        faults = [rule for rule, text in PLANTED.items() if text == asked]
        return Reply(text=json.dumps({"reason": f"because of {faults}", "faults": faults}))

    return FakeEngine(say)


def labels(outcome: Outcome) -> dict[str, float]:
    assert isinstance(outcome, (Emitted, Dropped))
    assert outcome.sample is not None
    return {label.name: label.value for label in outcome.sample.labels}


def test_every_rule_has_a_planted_question() -> None:
    assert set(PLANTED) == set(RULES)


def test_faults_are_labels_by_rule_and_drop_nothing_by_default() -> None:
    samples = [question(text, number) for number, text in enumerate((*PLANTED.values(), GOOD))]
    outcomes = run(critic(), samples, seeing_faults())
    assert {type(outcome) for outcome in outcomes} == {Emitted}
    assert [labels(outcome) for outcome in outcomes] == [
        *({"critic": 1.0, f"critic_{rule}": 1.0} for rule in PLANTED),
        {"critic": 0.0},
    ]


@pytest.mark.parametrize("rule", RULES)
def test_a_policy_drops_by_the_name_of_the_rule(rule: str) -> None:
    outcomes = run(
        critic(Policy(critic="drop")), [question(PLANTED[rule]), question(GOOD, 1)], seeing_faults()
    )
    assert told(outcomes) == [("Dropped", f"critic_{rule}"), ("Emitted", "")]
    assert isinstance(outcomes[0], Dropped)
    assert outcomes[0].detail == f"because of ['{rule}']"


def test_of_several_faults_the_worst_is_the_reason_and_all_are_labelled() -> None:
    reply = json.dumps({"reason": "r", "faults": ["overloaded", "off_type", "overloaded"]})
    (outcome,) = run(critic(Policy(critic="drop")), [question(GOOD)], saying(reply))
    assert told([outcome]) == [("Dropped", "critic_off_type")]
    assert labels(outcome) == {"critic": 2.0, "critic_off_type": 1.0, "critic_overloaded": 1.0}


def test_the_judge_is_shown_the_type_and_held_to_the_schema() -> None:
    engine = seeing_faults()
    run(critic(), [question(GOOD)], engine)
    ((request,),) = engine.batches
    assert "fine > attribute > color (Name a color.)" in prompt_of(request)
    assert request.schema == SCHEMA


def test_a_rule_that_does_not_exist_is_mended_or_set_aside() -> None:
    engine = saying('{"reason": "r", "faults": ["boring"]}')
    (outcome,) = run(critic(), [question(GOOD)], engine)
    assert told([outcome]) == [("Quarantined", "unreadable_json")]
    assert len(engine.batches) == 2


def test_the_policy_can_be_tried_on_a_finished_record() -> None:
    good = question(GOOD).with_label("critic", 0.0)
    bad = question(GOOD).with_label("critic", 1.0)
    drop = Policy(critic="drop")
    reasons = []
    for sample in (good, bad, question(GOOD)):
        judged = Sample(id="x", images=(), score=Score(overall=9), labels=sample.labels)
        reasons.append((decide(judged, drop).reason, decide(judged, Policy()).reason))
    assert reasons == [
        ("score_high", "score_high"),
        ("critic_fault", "score_high"),
        ("no_critic", "score_high"),
    ]


def test_a_policy_on_a_critic_that_nobody_runs_is_refused() -> None:
    with pytest.raises(UserError, match="put `critic` before `decide`"):
        JourneyConfig(policy=Policy(critic="drop"))


@pytest.mark.parametrize("prompts", ["default", "chinese"])
def test_sets_for_real_models_explain_every_rule(prompts: str) -> None:
    text = PromptSet.load(prompts).text("critic")
    assert [rule for rule in RULES if rule not in text] == []


def test_it_is_built_from_a_configuration() -> None:
    stage = STAGES["critic"](JourneyConfig(), Tree.load("windtunnel"))
    assert (stage.name, stage.roles) == ("critic", {"judge"})
