"""The passes P2 to P4 on a made-up plan with a fake engine: accounts, bytes, resume."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from synth_fakes import FakeEngine, seen
from test_journey import good, kind

from infinity_mm.engines.base import Engine, Failure, ImageReader, Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.record import Emitted, ImageRef, Sample, settle
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import Pass, PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import RunSummary, run_passes
from infinity_mm.synth.ask import AskConfig
from infinity_mm.synth.dedup_pass import DedupConfig, DedupPass, find_repeats
from infinity_mm.synth.journey_pass import PAIRS_FILE, JourneyPass
from infinity_mm.synth.merge import conversation
from infinity_mm.synth.publish_pass import PublishConfig, PublishPass
from infinity_mm.synth.stages import JourneyConfig

CONFIG = JourneyConfig(
    prompts="nano", ask=AskConfig(drop_copied_examples=False, describe_type=False), images_per_shard=2
)
COLOR = {"type": "fine_single/attribute/color", "examples": ["Is it red?", "Is it blue?"]}


@dataclass(frozen=True, kw_only=True)
class FakeSpec:
    """Opens an engine that answers well; `fail_on` names an image whose calls fail."""

    fail_on: str = ""
    down: bool = False
    """Whether the server is down for everything but asking."""
    key_expires_after: int = 10**6
    """Calls that are answered before all others are refused."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        calls = itertools.count()
        refused = Failure(reason="http_401", detail="the key has expired")
        yield FakeEngine(
            lambda request: refused if next(calls) >= self.key_expires_after else self.say(request)
        )

    def say(self, request: Request) -> Reply | Failure:
        if self.down and kind(request) != "ask":
            return Failure(reason="http_503", detail="overloaded", retryable=True)
        if any(image.sha256.startswith(self.fail_on or "-") for image in request.images):
            return Failure(reason="bad_image", detail="the server said so")
        score = str(9 if request.seed % 3 else 2)
        return Reply(text=score) if kind(request) == "judge" else good(request)


@dataclass(frozen=True, kw_only=True)
class MadeUpPlan:
    """Stands for the passes before: images and a plan."""

    num_images: int = 5
    name: str = "plan"

    def fingerprint(self) -> str:
        return str(self.num_images)

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id="00000", payload=None)]

    @asynccontextmanager
    async def _open(self, run: Run) -> AsyncIterator[PassWorker]:
        yield MadeUpPlanWorker(self, run)

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open(run)


@dataclass
class MadeUpPlanWorker:
    pass_: MadeUpPlan
    run_: Run

    async def run(self, unit: Unit) -> UnitResult:
        samples = [self._sample(number) for number in range(self.pass_.num_images)]
        ids = [sample.id for sample in samples]
        plan = {sample.id: [COLOR] * 2 for sample in samples}
        return UnitResult(
            input_ids=ids,
            samples=samples,
            fates=settle("plan", ids, [Emitted(sample=sample) for sample in samples]),
            files={"plan.json": json.dumps(plan).encode()},
        )

    def _sample(self, number: int) -> Sample:
        data = png(number)
        image = ImageRef(
            sha256=hashlib.sha256(data).hexdigest(),
            uri=self.run_.store_image(data),
            width=8,
            height=8,
            source="made_up",
            licence="CC0-1.0",
            phash=f"{number * 0x0101_0101_0101_0101:016x}",
        )
        return Sample(id=image.sha256[:16], images=(image,))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 40, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def passes(spec: FakeSpec, config: JourneyConfig = CONFIG, rows_per_file: int = 2000) -> list[Pass]:
    return [
        MadeUpPlan(),
        JourneyPass(config=config, teacher=spec, tree="windtunnel"),
        DedupPass(),
        PublishPass(config=PublishConfig(rows_per_file=rows_per_file)),
    ]


def make(folder: Path, spec: FakeSpec | None = None, **options: object) -> tuple[Run, RunSummary]:
    run = Run(str(folder))
    return run, run_passes(passes(spec or FakeSpec(), **options), run, LocalExecutor())  # type: ignore[arg-type]


def published(run: Run) -> dict[str, bytes]:
    manifest = run.manifest("publish")
    assert manifest is not None
    num = len(manifest.units)
    names = [f"train-{n:05d}-of-{num:05d}.parquet" for n in range(num)]
    return {name: run.read_file("publish", unit, name) for unit, name in zip(manifest.units, names)}


def test_the_passes_account_for_every_image_and_publish_what_is_kept(tmp_path: Path) -> None:
    run, summary = make(tmp_path / "a")
    totals = {each.name: each.totals for each in summary.passes}
    assert totals["journeys"]["in"] == 5
    assert totals["journeys"]["out"] == totals["dedup"]["in"] == totals["publish"]["out"] > 0
    assert len(run.manifest("journeys").units) == 3  # type: ignore[union-attr]
    metrics = next(each.metrics for each in summary.passes if each.name == "journeys")
    assert (metrics["calls.ask"], metrics["calls.check"], metrics["calls.answer"]) == (10, 10, 30)
    (data,) = published(run).values()
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    assert [row["id"] for row in rows] == sorted(sample.id for sample in run.samples("dedup"))
    assert {row["licence"] for row in rows} == {"CC0-1.0"}


def test_two_fresh_runs_and_a_replay_of_the_journal_give_the_same_bytes(tmp_path: Path) -> None:
    first, _ = make(tmp_path / "a")
    second, _ = make(tmp_path / "b")
    assert published(first) == published(second)
    (tmp_path / "c").mkdir()
    (tmp_path / "a" / "journal").rename(tmp_path / "c" / "journal")
    replayed, _ = make(tmp_path / "c", config=replace(CONFIG, journal="replay", images_in_flight=1))
    assert published(first) == published(replayed)
    assert _but_for_uris(first) == _but_for_uris(replayed)


def test_the_cut_into_shards_does_not_show_in_what_is_published(tmp_path: Path) -> None:
    first, _ = make(tmp_path / "a")
    second, _ = make(tmp_path / "b", config=replace(CONFIG, images_per_shard=4))
    assert published(first) == published(second)


def test_a_replay_without_a_reply_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the journal has no reply"):
        make(tmp_path / "a", config=replace(CONFIG, journal="replay"))


def test_a_finished_run_asks_nobody(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "a")
    again = run_passes(passes(FakeSpec()), run, LocalExecutor())
    assert all(each.skipped for each in again.passes)


def test_a_failing_image_is_quarantined_and_the_others_go_on(tmp_path: Path) -> None:
    bad = hashlib.sha256(png(2)).hexdigest()
    run, summary = make(tmp_path / "a", FakeSpec(fail_on=bad))
    assert {(row["stage"], row["reason"]) for row in run.quarantined("journeys")} == {("ask", "bad_image")}
    assert summary.passes[-1].totals["out"] > 0
    assert bad[:16] not in {sample.id[:16] for sample in run.samples("publish")}


def test_a_server_that_is_down_stops_the_run_which_goes_on_later_without_asking_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calls of a shard failed.*'http_503'"):
        make(tmp_path / "a", FakeSpec(down=True), config=replace(CONFIG, images_per_shard=8))
    run, summary = make(tmp_path / "a", config=replace(CONFIG, images_per_shard=8))
    assert list(run.quarantined("journeys")) == []
    metrics = next(each.metrics for each in summary.passes if each.name == "journeys")
    assert (metrics["calls.ask"], metrics["from_journal.ask"]) == (10, 10)


def test_an_expired_key_stops_the_run_before_anything_is_set_aside(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calls of a shard failed.*'http_401'(.|\n)*its key"):
        make(tmp_path / "a", FakeSpec(key_expires_after=30))
    run, summary = make(tmp_path / "a")
    assert list(run.quarantined("journeys")) == []
    metrics = next(each.metrics for each in summary.passes if each.name == "journeys")
    assert sum(value for key, value in metrics.items() if key.startswith("from_journal.")) == 30


def test_an_outage_may_be_accepted(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "a", FakeSpec(down=True), config=replace(CONFIG, max_failed_share=1.0))
    assert {row["reason"] for row in run.quarantined("journeys")} == {"http_503"}


def test_a_dropped_pair_stays_to_be_looked_at_with_its_score(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "a")
    row = next(row for row in run.dropped("journeys") if row["reason"] == "score_low")
    assert (row["stage"], row["sample"]["score"]["overall"]) == ("decide", 2)


def test_the_pairs_lie_beside_the_conversations(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "a")
    pairs = [json.loads(line) for line in run.read_file("journeys", "00000", PAIRS_FILE).splitlines()]
    parents = {id_ for sample in run.unit_samples("journeys", "00000") for id_ in sample.parents}
    assert {pair["id"] for pair in pairs} == parents


def test_files_are_closed_when_they_have_enough_rows(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "a", rows_per_file=1)
    files = published(run)
    assert list(files) == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]


def test_an_image_that_is_gone_when_it_is_published_is_quarantined(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "a"))
    run_passes(passes(FakeSpec())[:-1], run, LocalExecutor())
    sample = next(run.samples("dedup"))
    Path(run.run_dir, sample.images[0].uri).unlink()
    run_passes(passes(FakeSpec()), run, LocalExecutor())
    assert {(row["stage"], row["reason"]) for row in run.quarantined("publish")} == {
        ("publish", "missing_image")
    }
    assert all(s.images != sample.images for s in run.samples("publish"))


def talk(id_: str, phash: str, *pairs: tuple[str, str]) -> Sample:
    from synth_fakes import NANO

    image = replace(seen().images[0], phash=phash, sha256=hashlib.sha256(id_.encode()).hexdigest())
    asked = [seen(f"{id_}.q{n}", question=q, answer=a, style="short") for n, (q, a) in enumerate(pairs)]
    return replace(conversation(asked, 0, NANO), id=id_, images=(image,))


NEAR, FAR = "0" * 15 + "1", "f" * 16


@pytest.mark.parametrize(
    ("later", "repeats"),
    [
        (talk("b", NEAR, ("What color is the car?", "Red.")), {"b": "a"}),
        (talk("b", NEAR, ("What colour is the car ?", "red")), {"b": "a"}),
        (talk("b", FAR, ("What color is the car?", "Red.")), {}),
        (talk("b", NEAR, ("What color is the car?", "Blue.")), {}),
        (talk("b", NEAR, ("What color is the bus?", "Red.")), {}),
        (talk("b", NEAR, ("What color is the car?", "Red."), ("How many?", "3")), {}),
    ],
)
def test_a_conversation_that_an_earlier_one_holds_is_merged_into_it(
    later: Sample, repeats: dict[str, str]
) -> None:
    first = talk("a", "0" * 16, ("What color is the car?", "Red."), ("Where is it?", "left"))
    assert find_repeats([lambda: [later], lambda: [first]], DedupConfig()) == [repeats, {}]


def test_all_copies_are_merged_into_one_that_stays() -> None:
    copies = [talk(id_, NEAR, ("Is it red?", "yes")) for id_ in "dacb"]
    assert find_repeats([lambda: copies], DedupConfig()) == [{"b": "a", "c": "a", "d": "a"}]


def test_without_perceptual_hashes_only_the_very_same_image_is_the_same() -> None:
    a = talk("a", NEAR, ("Is it red?", "yes"))
    bare = replace(a.images[0], phash=None)
    a, b = replace(a, images=(bare,)), replace(a, id="b", images=(bare,))
    c = replace(b, id="c", images=(replace(bare, sha256="cd" * 32),))
    assert find_repeats([lambda: [a, b, c]], DedupConfig()) == [{"b": "a"}]


def _but_for_uris(run: Run) -> list[Sample]:
    """The two runs keep their images in different folders."""
    return [
        replace(sample, images=tuple(replace(image, uri="") for image in sample.images))
        for sample in run.samples("journeys")
    ]
