"""The cap on pairs that need no image: who goes, what is left of a conversation, and a run with it."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synth_fakes import NANO, FakeEngine, seen
from test_journey import good, kind
from test_synth_passes import CONFIG, MadeUpPlan, published

from infinity_mm.engines.base import Engine, ImageReader, Reply, Request
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Call, ImageSlot, Text, Turn
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.cap_pass import CapPass, over_cap
from infinity_mm.synth.dedup_pass import DedupPass
from infinity_mm.synth.journey_pass import JourneyPass, read_pairs
from infinity_mm.synth.merge import conversation
from infinity_mm.synth.outtake import taken_out, without
from infinity_mm.synth.publish_pass import PublishPass

PAIRS = [
    seen(
        f"a.q{n}.short",
        question=f"Question {n}?",
        answer=str(n),
        style="short",
        calls=(Call(stage="ask", model="m", prompt="p", key=str(n), temperature=0.0, seed=n),),
    )
    for n in range(3)
]
TALK = conversation(PAIRS, 0, NANO)
BY_ID = {pair.id: pair for pair in PAIRS}


def test_the_first_in_id_order_stay_as_many_as_the_share_allows() -> None:
    blind = {"color": ["c", "a", "b"], "shape": ["d", "e"]}
    assert sorted(over_cap(blind, {"color": 8}, 0.2)) == ["c", "d", "e"]
    assert sorted(over_cap(blind, {"color": 9, "shape": 1}, 0.1)) == ["b", "c", "d", "e"]
    assert sorted(over_cap(blind, {"color": 8}, 0)) == ["a", "b", "c", "d", "e"]


@given(num_blind=st.integers(0, 30), num_seeing=st.integers(0, 60), percent=st.integers(0, 99))
def test_the_share_holds_and_one_more_would_break_it(num_blind: int, num_seeing: int, percent: int) -> None:
    ids = [f"{n:03d}" for n in range(num_blind)]
    gone = list(over_cap({"t": ids}, {"t": num_seeing}, percent / 100))
    stay = num_blind - len(gone)
    assert 100 * stay <= percent * (stay + num_seeing)
    assert not gone or 100 * (stay + 1) > percent * (stay + 1 + num_seeing)
    assert gone == ids[stay:]


def test_a_conversation_without_its_first_pair_begins_with_the_image() -> None:
    rest = without(TALK, {"a.q0.short"}, BY_ID)
    assert rest is not None
    assert rest == replace(conversation(PAIRS[1:], 0, NANO), id=TALK.id)
    assert rest.turns[0].content == (ImageSlot(0), Text("Question 1?\nAnswer with a word or phrase."))


def test_a_conversation_is_left_alone_or_gone_where_none_or_all_of_its_pairs_go() -> None:
    assert without(TALK, {"b.q0.short"}, {}) is TALK
    assert without(TALK, set(BY_ID), BY_ID) is None


def test_turns_that_came_with_the_image_stay() -> None:
    came_with = seen(
        "a.source",
        turns=(Turn("user", (ImageSlot(0), Text("What is it?"))), Turn("assistant", (Text("A dog."),))),
    )
    talk = conversation(PAIRS, 0, NANO, source=came_with)
    assert without(talk, {"a.q1.short"}, BY_ID) == conversation(
        [PAIRS[0], PAIRS[2]], 0, NANO, source=came_with
    )
    assert without(talk, set(BY_ID), BY_ID) == conversation([], 0, NANO, source=came_with)


@dataclass(frozen=True, kw_only=True)
class GuessingSpec:
    """Judges all good; without an image it knows the answer to one question in two."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        yield FakeEngine(self.say)

    def say(self, request: Request) -> Reply:
        if not request.images:
            return Reply(text="nothing known" if request.seed % 2 else said(request))
        if kind(request) == "judge":
            return Reply(text="9")
        return Reply(text=said(request)) if kind(request).startswith("answer") else good(request)


def said(request: Request) -> str:
    return "It is " + request.turns[-1].text.partition("\n")[0]


def make(folder: Path, share: float, images_per_shard: int = 2) -> Run:
    config = replace(
        CONFIG,
        stages=("ask", "distinct", "styles", "answer", "blind", "judge", "decide", "merge"),
        policy=Policy(rewrite_at=None, blind="cap", max_blind_share=share),
        images_per_shard=images_per_shard,
    )
    run = Run(str(folder))
    journeys = JourneyPass(config=config, teacher=GuessingSpec(), tree="windtunnel")
    cap = CapPass(max_blind_share=share)
    passes = [MadeUpPlan(num_images=8), journeys, cap, DedupPass(after="cap"), PublishPass()]
    run_passes(passes, run, LocalExecutor())
    return run


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_run_publishes_no_larger_share_than_the_policy_allows(tmp_path: Path, share: float) -> None:
    run = make(tmp_path / "a", share)
    manifest = run.manifest("journeys")
    assert manifest is not None
    pairs = [pair for unit in manifest.units for pair in read_pairs(run, "journeys", unit)]
    blind = sorted(pair.id for pair in pairs if pair.label("blind"))
    num_seeing = len(pairs) - len(blind)
    assert min(len(blind), num_seeing) > 4, "the run must have some of both for this to mean anything"
    num_stay = int(share / (1 - share) * num_seeing)
    assert sorted(taken_out(run)) == blind[num_stay:]
    kept = {id_ for sample in run.samples("publish") for id_ in sample.parents}
    assert kept == {pair.id for pair in pairs} - set(taken_out(run))
    for data in published(run).values():
        for row in pq.read_table(io.BytesIO(data)).to_pylist():
            assert (
                len(row["messages"])
                == 2 * len(row["pairs"])
                == 2 * len(json.loads(row["provenance"])["pairs"])
            )


def test_who_goes_does_not_depend_on_the_cut_into_shards(tmp_path: Path) -> None:
    assert published(make(tmp_path / "a", 0.2)) == published(make(tmp_path / "b", 0.2, images_per_shard=5))
