"""A question asked of many images: numbered over the whole set, taken out beyond the limit, whatever the shards."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from synth_fakes import NANO, FakeEngine, seen
from test_journey import kind
from test_synth_passes import CONFIG, MadeUpPlan, published

from infinity_mm.engines.base import Engine, ImageReader, Reply, Request
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.dedup_pass import DedupPass
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.merge import conversation
from infinity_mm.synth.outtake import taken_out, without
from infinity_mm.synth.publish_pass import PublishPass
from infinity_mm.synth.repeats_pass import RepeatsPass


@dataclass(frozen=True, kw_only=True)
class SameQuestionSpec:
    """Asks every image the same first question, and a second one of its own."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        asked: dict[str, int] = {}

        def say(request: Request) -> Reply:
            image = request.images[0].sha256
            if kind(request) == "ask":
                asked[image] = asked.get(image, 0) + 1
                return Reply(
                    text="How many dogs are there?" if asked[image] == 1 else f"What is {image[:6]}?"
                )
            return Reply(text="9" if kind(request) == "judge" else f"It is {image[:4]}.")

        yield FakeEngine(say)


def make(folder: Path, max_repeats: int | None, images_per_shard: int = 2) -> Run:
    config = replace(
        CONFIG,
        stages=("ask", "distinct", "styles", "answer", "judge", "decide", "merge"),
        images_per_shard=images_per_shard,
    )
    run = Run(str(folder))
    journeys = JourneyPass(config=config, teacher=SameQuestionSpec(), tree="windtunnel")
    passes = [MadeUpPlan(num_images=7), journeys, DedupPass(), RepeatsPass(max_repeats=max_repeats)]
    run_passes([*passes, PublishPass(after="repeats")], run, LocalExecutor())
    return run


def repeats_of(run: Run) -> dict[str, set[float]]:
    """First words of a question -> labels of its pairs."""
    found: dict[str, set[float]] = {}
    for data in published(run).values():
        for row in pq.read_table(io.BytesIO(data)).to_pylist():
            asked = [m["content"][-1]["text"] for m in row["messages"] if m["role"] == "user"]
            for text, pair in zip(asked, row["pairs"], strict=True):
                found.setdefault(text[:8], set()).add(pair["repeat"])
    return found


def test_without_a_limit_every_use_is_numbered_and_stays(tmp_path: Path) -> None:
    run = make(tmp_path, None)
    assert repeats_of(run) == {"How many": {1, 2, 3, 4, 5, 6, 7}, "What is ": {1}}
    assert taken_out(run) == {}
    manifest = run.manifest("repeats")
    assert manifest is not None
    counted = {name: manifest.metrics[name] for name in ("questions", "questions_repeated", "questions_over")}
    assert counted == {"questions": 14, "questions_repeated": 6, "questions_over": 0}


def test_beyond_the_limit_the_later_ones_in_id_order_are_taken_out(tmp_path: Path) -> None:
    run = make(tmp_path, 3)
    assert repeats_of(run) == {"How many": {1, 2, 3}, "What is ": {1}}
    gone = taken_out(run)
    images = sorted(sample.id for sample in run.unit_samples("plan", "00000"))
    assert {id_.partition(".")[0] for id_ in gone} == set(images[3:])
    assert set(gone.values()) == {"repeats"}


@pytest.mark.parametrize("images_per_shard", [1, 7])
def test_the_published_bytes_do_not_depend_on_the_shards(tmp_path: Path, images_per_shard: int) -> None:
    cut = published(make(tmp_path / "a", 3, images_per_shard))
    assert list(cut.values()) == list(published(make(tmp_path / "b", 3)).values())


def test_a_conversation_that_came_with_the_image_stays_where_all_other_pairs_go() -> None:
    said = (
        Turn("user", (ImageSlot(0), Text("What is it?"))),
        Turn("assistant", (Text("A door."),)),
        Turn("user", (Text("And there?"),)),
        Turn("assistant", (Text("A wall."),)),
    )
    source = seen("a.source", turns=said, parents=("a",))
    pairs = [seen(f"a.q{n}.short", question=f"Question {n}?", answer=str(n), style="short") for n in range(2)]
    by_id = {pair.id: pair for pair in pairs}
    talk = conversation(pairs, 0, NANO, source=source)
    one_left = without(talk, {"a.q0.short"}, by_id)
    assert one_left == conversation(pairs[1:], 0, NANO, source=source)
    none_left = without(talk, set(by_id), by_id)
    assert none_left is not None
    assert (none_left.turns, none_left.parents) == (said, ("a.source",))


def test_the_file_of_numbers_names_only_repeated_questions(tmp_path: Path) -> None:
    run = make(tmp_path, None, images_per_shard=7)
    numbers = json.loads(run.read_file("repeats", "00000", "repeats.json"))
    assert sorted(numbers.values()) == [2, 3, 4, 5, 6, 7]
