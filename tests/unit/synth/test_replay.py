"""What a run set aside, run again: the right samples, from the right stage, with the old run's answers kept apart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from synth_fakes import context, saying, seen
from test_synth_passes import FakeSpec, kind
from test_synth_run import FakeTagger

from infinity_mm.config import load_config
from infinity_mm.engines import spec
from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.record import Score
from infinity_mm.report.lookup import NOT_RECORDED
from infinity_mm.report.trace import trace_sample
from infinity_mm.runtime.run import Run
from infinity_mm.synth.aside_pass import Aside, as_it_entered, entry
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.ids import conversation_id, image_id
from infinity_mm.synth.journey import Journey, walk
from infinity_mm.synth.replay import config_of, replay
from infinity_mm.synth.run import run_synthesis
from infinity_mm.synth.stage import Stage
from infinity_mm.taxonomy import tag_pass

TINY = Path(__file__).parents[3] / "configs" / "synth" / "tiny.yaml"
STAGES = SynthConfig.__dataclass_fields__["stages"].default


@dataclass(frozen=True, kw_only=True)
class FlakySpec(FakeSpec):
    """Loses half of the answers while it is told to."""

    def say(self, request: Request) -> Reply | Failure:
        if kind(request).startswith("answer") and "TEACHER_IS_SLOW" in os.environ and request.seed % 2:
            return Failure(reason="timeout", detail="too slow")
        return super().say(request)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SynthConfig]:
    """A finished run that lost answers to a server which has come back since."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tag_pass, "open_tagger", FakeTagger)
        patch.setitem(spec.KINDS, "fake", FlakySpec)
        config = load_config(
            SynthConfig,
            TINY,
            [
                f"run_dir={tmp_path_factory.mktemp('run')}",
                "engines={teacher: {kind: fake}}",
                "read.sources=[{kind: windtunnel, num_images: 6, world_seed: 1}]",
            ],
        )
        patch.setenv("TEACHER_IS_SLOW", "1")
        run_synthesis(config)
        patch.delenv("TEACHER_IS_SLOW")
        yield config


def parents(run_dir: str) -> set[str]:
    return {parent for sample in Run(run_dir).samples("publish") for parent in sample.parents}


def test_a_replay_takes_what_was_lost_and_adds_rows_that_are_in_neither_run_twice(run: SynthConfig) -> None:
    lost = {row["id"] for row in Run(run.run_dir).quarantined("journeys") if row["reason"] == "timeout"}
    found = replay(Aside(run_dir=run.run_dir, reason="timeout"))
    assert found.taken == len(lost) > 0
    assert found.pairs_kept > 0
    assert parents(found.run_dir) <= lost
    assert not parents(found.run_dir) & parents(run.run_dir)
    ids = [{sample.id for sample in Run(one).samples("publish")} for one in (run.run_dir, found.run_dir)]
    assert not ids[0] & ids[1]
    fates = {line.stage for line in Run(found.run_dir).ledger("journeys")}
    assert {"answer", "judge", "merge"} <= fates
    assert not {"ask", "check", "styles"} & fates


def test_the_same_replay_again_asks_nothing_and_another_reason_has_its_own_folder(run: SynthConfig) -> None:
    first = replay(Aside(run_dir=run.run_dir, reason="timeout"))
    assert replay(Aside(run_dir=run.run_dir, reason="timeout")) == first
    low = replay(
        Aside(run_dir=run.run_dir, reason="score_low"), overrides=["policy.keep_at=1", "policy.rewrite_at=1"]
    )
    assert low.run_dir != first.run_dir
    assert low.pairs_kept == low.taken > 0


def test_a_replayed_sample_is_traced_back_into_the_run_it_comes_from(run: SynthConfig) -> None:
    found = replay(Aside(run_dir=run.run_dir, reason="timeout"), overrides=["answer.max_chars=7000"])
    sample = next(iter(Run(found.run_dir).samples("publish")))
    trace = trace_sample(Run(found.run_dir), sample.id)
    assert trace["run"]["replays"] == [run.run_dir]
    assert trace["image"]["files"][0]["source"] == "windtunnel"
    part = trace["parts"][0]
    (plan,) = part["plan"]
    assert plan["type"] == part["made"]["instruction_type"]
    calls = {call["stage"]: call for call in part["calls"]}
    assert [call["stage"] for call in part["calls"]][:4] == ["ask", "check", "answer", "judge"]
    assert all(call["reply"] != NOT_RECORDED for call in part["calls"])
    assert [failure["reason"] for failure in calls["answer"]["failures"]] == ["timeout"]
    assert calls["answer"]["settings"]["stage"]["max_chars"] == 7000
    fates = [(fate["stage"], fate["fate"]) for step in trace["lineage"] for fate in step["fates"]]
    assert fates.index(("answer", "quarantined")) < fates.index(("aside", "continued"))


def test_a_reason_that_nothing_ended_with_is_refused_with_those_that_are_there(run: SynthConfig) -> None:
    with pytest.raises(UserError, match=r"timeout \(answer\)"):
        replay(Aside(run_dir=run.run_dir, reason="tomeout"))


def test_the_configuration_of_a_run_comes_back_from_its_folder(run: SynthConfig) -> None:
    assert config_of(run.run_dir) == run
    assert config_of(run.run_dir, ["seed=5"]) == replace(run, seed=5)


def test_a_rejected_rewrite_goes_in_again_as_the_answer_it_replaced() -> None:
    old = Score(overall=5)
    sample = seen(
        "a.q0.short", answer="new", score=Score(overall=4), decision="drop", previous=(("old", old),)
    )
    assert as_it_entered(sample, "rewrite") == seen("a.q0.short", answer="old", score=old, decision="rewrite")
    assert as_it_entered(sample, "judge") == sample


@pytest.mark.parametrize(
    ("style", "stage", "start", "said"),
    [
        ("short", "decide", "answer", "answer"),
        (None, "check", "ask", "ask"),
        (None, "check", None, "check"),
    ],
)
def test_a_sample_goes_on_where_it_ended_or_earlier(
    style: str | None, stage: str, start: str | None, said: str
) -> None:
    assert entry(seen(style=style), stage, start, STAGES) == said


@pytest.mark.parametrize(
    ("style", "stage", "start", "said"),
    [
        ("short", "answer", "ask", "before styles are told apart"),
        (None, "ask", "judge", "comes later"),
        (None, "ask", "answr", "no stage `answr`"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(style: str | None, stage: str, start: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        entry(seen(style=style), stage, start, STAGES)


def test_ids_of_a_replay_stand_beside_those_of_the_run() -> None:
    assert conversation_id("ab.q0.short", 1) == "ab.c1"
    assert conversation_id("ab.q0.short", 1, "r12") == "ab.r12c1"
    assert image_id("ab.q12.short") == image_id("ab.q3") == "ab"


class Marking:
    """A stage that notes who came."""

    reads = writes = roles = prompts = needs_probabilities = frozenset[str]()

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[str] = []

    async def run(self, samples: Sequence[object], context: object) -> list[object]:
        from infinity_mm.record import Emitted

        self.seen = [sample.id for sample in samples]  # type: ignore[attr-defined]
        return [Emitted(sample=sample) for sample in samples]  # type: ignore[arg-type]


def test_samples_join_a_walk_at_their_stage() -> None:
    stages = [Marking("one"), Marking("two"), Marking("three")]
    entering = {"two": [seen("a")], "three": [seen("b")]}
    walked: Sequence[Stage] = stages  # type: ignore[assignment]
    journey = asyncio.run(walk(Journey(), entering, walked, context(saying(""))))
    assert [stage.seen for stage in stages] == [[], ["a"], ["b", "a"]]
    assert [sample.id for sample in journey.samples] == ["b", "a"]
