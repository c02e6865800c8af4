from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infinity_mm.config import to_plain
from infinity_mm.engines import spec
from infinity_mm.engines.base import (
    Capabilities,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
    no_likelihoods,
)
from infinity_mm.engines.spec import EngineConfig
from infinity_mm.errors import BudgetSpentError, UserError
from infinity_mm.record import Emitted, ImageRef, Quarantined, Sample, Tag
from infinity_mm.report.trace import trace_sample
from infinity_mm.runtime.budget import BudgetConfig
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.read_pass import ReadConfig, ReadPass
from infinity_mm.sources.unique_pass import UniquePass
from infinity_mm.taxonomy.tag_pass import TagPass
from infinity_mm.taxonomy.tagger import TaggerConfig, needs_tags, with_tags
from infinity_mm.taxonomy.vlm_tagger import VlmTagger, loose, read_tags

KNOWN = {loose(tag): tag for tag in ("dog", "fire hydrant", "T-shirt", "snow")}
JSON = '{"tags": [{"tag": "dog", "probability": 0.9}, {"tag": "unicorn", "probability": 0.8}'


@pytest.mark.parametrize(
    ("text", "scores", "num_unknown"),
    [
        (JSON + "]}", {"dog": 0.9}, 1),
        ("Here you are:\n```json\n" + JSON + ', {"tag": "sno', {"dog": 0.9}, 1),
        ('{"tags": ["Fire_Hydrant", "dog"]}', {"fire hydrant": 1.0, "dog": 1.0}, 0),
        ("- dog: 0.75\n- t shirt (80%)\n2. snow", {"dog": 0.75, "T-shirt": 0.8, "snow": 1.0}, 0),
        ("dog, snow, dog: 0.5", {"dog": 1.0, "snow": 1.0}, 0),
        ('[{"tag": "dog", "probability": 30}]', {"dog": 0.3}, 0),
        ('[{"tag": "dog", "probability": 700}]', {"dog": 1.0}, 0),
        ("dog: 30", {"dog": 0.3}, 0),
        ('{"tags": []}', {}, 0),
        ('{"tags": [{"tag": "unicorn"}]}', {}, 1),
    ],
)
def test_replies_are_read_in_any_form_by_the_words_of_the_vocabulary(
    text: str, scores: dict[str, float], num_unknown: int
) -> None:
    said = read_tags(text, KNOWN)
    assert said is not None
    assert (dict(said.scores), said.num_unknown) == (scores, num_unknown)


@pytest.mark.parametrize("text", ["", "I cannot see any image.", "{}"])
def test_a_reply_without_any_tag_is_no_answer(text: str) -> None:
    assert read_tags(text, KNOWN) is None


class Model:
    """Answers from a list, in the order of asking."""

    capabilities = Capabilities(images_per_prompt=1, choice_logprobs=False, seeds=True, reproducible="exact")
    fingerprint = "model"

    def __init__(self, *answers: Reply | Failure) -> None:
        self.answers, self.asked = list(answers), list[Request]()

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.asked += requests
        return [self.answers.pop(0) for _ in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        return no_likelihoods(scorings)


CONFIG = TaggerConfig(
    model="vlm", engine=EngineConfig(kind="transformers", model="nano-teacher"), min_score=0.3
)


def image(id_: str, **fields: object) -> Sample:
    ref = ImageRef(sha256=id_ * 64, uri="/x", width=64, height=64)
    return Sample(id=id_, images=(ref,), **fields)  # type: ignore[arg-type]


def test_tags_come_with_the_call_that_gave_them_and_say_that_they_are_not_calibrated() -> None:
    model = Model(
        Reply(text='{"tags": [{"tag": "circle", "probability": 0.9}, {"tag": "red", "probability": 0.1}]}'),
        Failure(reason="bad_image", detail="no"),
        Reply(text="Sorry."),
    )
    outcomes, counts = asyncio.run(VlmTagger(CONFIG, model).outcomes([image("a"), image("b"), image("c")]))
    first, *others = outcomes
    assert isinstance(first, Emitted)
    assert first.sample.tags == (Tag(name="circle", score=0.9, calibrated=False),)
    assert [(call.stage, call.model) for call in first.sample.calls] == [("tag", "model")]
    assert [o.reason for o in others if isinstance(o, Quarantined)] == ["bad_image", "unreadable_tags"]
    assert counts["images_scored"] == 3


def test_the_vocabulary_stands_before_the_image_so_that_it_is_read_once() -> None:
    model = Model(*[Reply(text='{"tags": []}')] * 4)
    for listed in (True, False):
        tagger = VlmTagger(replace(CONFIG, list_vocabulary=listed), model)
        asyncio.run(tagger.outcomes([image("a"), image("b")]))
    systems = [[t.text for t in request.turns if t.role == "system"] for request in model.asked]
    assert systems[0] == systems[1]
    assert "\nbar chart\n" in systems[0][0]
    assert systems[2:] == [[], []]


def test_one_call_that_is_refused_for_its_key_stops_the_run() -> None:
    refused = Failure(reason="http_401", detail="the key has expired")
    with pytest.raises(UserError, match="1 of 2 calls for tags failed"):
        asyncio.run(VlmTagger(CONFIG, Model(refused, Reply(text="red"))).outcomes([image(i) for i in "ab"]))


def test_a_server_that_is_down_stops_the_run() -> None:
    down = Failure(reason="timeout", detail="", retryable=True)
    with pytest.raises(UserError, match="5 of 9 calls for tags failed"):
        asyncio.run(
            VlmTagger(CONFIG, Model(*[down] * 5, *[Reply(text="red")] * 4)).outcomes(
                [image(i) for i in "abcdefghi"]
            )
        )


@dataclass(frozen=True, kw_only=True)
class CircleSpec:
    """A model that sees a circle in every picture."""

    model: str

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Model]:
        yield Model(*[Reply(text=json.dumps({"tags": [{"tag": "circle"}]}))] * 3)


def test_a_pass_asks_the_model_once_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spec.KINDS, "circle", CircleSpec)
    source = SourceConfig(kind="windtunnel", num_images=3, world_seed=1)
    engine = EngineConfig(kind="circle", model="m")
    passes = [ReadPass(config=ReadConfig(sources=(source,))), UniquePass()]
    run = Run(str(tmp_path / "run"))
    run_passes([*passes, TagPass(config=TaggerConfig(model="vlm", engine=engine))], run, LocalExecutor())
    again = TagPass(config=TaggerConfig(model="vlm", engine=engine, top_k=1))
    summary = run_passes([*passes, again], run, LocalExecutor()).passes[-1]
    assert [sample.tags for sample in run.samples("tag")] == [(Tag(name="circle", score=1.0),)] * 3
    assert (summary.metrics["images_scored"], summary.metrics["images_from_journal"]) == (0, 3)
    assert summary.metrics["tags_not_calibrated"] == 3


def test_a_simulated_run_asks_no_model_and_marks_every_image(tmp_path: Path) -> None:
    engine = EngineConfig(kind="openai", base_url="http://127.0.0.1:9/v1", model="m", revision="1")
    config = TaggerConfig(model="vlm", engine=engine)
    source = SourceConfig(kind="windtunnel", num_images=3, world_seed=1)
    run = Run(str(tmp_path / "run"))
    simulated = TagPass(config=config, journal="simulate")
    passes = [ReadPass(config=ReadConfig(sources=(source,))), UniquePass(), simulated]
    run_passes(passes, run, LocalExecutor())
    assert [sample.is_simulated for sample in run.samples("tag")] == [True] * 3
    assert simulated.fingerprint() != TagPass(config=config).fingerprint()


def test_calls_for_tags_count_against_the_budget_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spec.KINDS, "circle", CircleSpec)
    config = TaggerConfig(model="vlm", engine=EngineConfig(kind="circle", model="m"))
    source = SourceConfig(kind="windtunnel", num_images=3, world_seed=1)
    passes = [ReadPass(config=ReadConfig(sources=(source,))), UniquePass(), TagPass(config=config)]
    run = Run(str(tmp_path / "run"))
    with pytest.raises(BudgetSpentError):
        run_passes(passes, run, LocalExecutor(), budget=BudgetConfig(requests=2))
    run_passes(passes, run, LocalExecutor(), budget=BudgetConfig(requests=5))
    assert [bool(sample.tags) for sample in run.samples("tag")] == [True] * 3


def test_the_trace_of_a_tagged_image_tells_who_was_asked_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spec.KINDS, "circle", CircleSpec)
    source = SourceConfig(kind="windtunnel", num_images=3, world_seed=1)
    config = TaggerConfig(model="vlm", engine=EngineConfig(kind="circle", model="m"))
    run = Run(str(tmp_path / "run"))
    run.start({"tagger": to_plain(config)}, seed=0)
    passes = [ReadPass(config=ReadConfig(sources=(source,))), UniquePass(), TagPass(config=config)]
    run_passes(passes, run, LocalExecutor())
    sample = next(iter(run.samples("tag")))
    (call,) = trace_sample(run, sample.id)["calls"]
    assert call["settings"]["role"] == "tagger"
    assert call["settings"]["engine"] == {"kind": "circle", "model": "m"}
    assert call["prompt_text"].startswith("Which of the tags")
    assert json.loads(call["reply"]["text"]) == {"tags": [{"tag": "circle"}]}


OWN = (Tag(name="dog", score=0.9), Tag(name="snow", score=0.4))
FOUND = (Tag(name="snow", score=0.6, calibrated=True), Tag(name="red", score=0.5, calibrated=True))


def test_tags_that_came_with_an_image_stand_are_merged_or_ignored() -> None:
    keep, merge, ignore = (TaggerConfig(source_tags=rule) for rule in ("keep", "merge", "ignore"))  # type: ignore[arg-type]
    own, bare = image("a", tags=OWN), image("b")
    assert [needs_tags(own, config) for config in (keep, merge, ignore)] == [False, True, True]
    assert needs_tags(bare, keep)
    assert with_tags(own, FOUND, merge).tags == (OWN[0], FOUND[0], FOUND[1])
    assert with_tags(own, FOUND, ignore).tags == with_tags(bare, FOUND, merge).tags == FOUND


@pytest.mark.parametrize(
    "options",
    [
        {"model": "vlm"},
        {"engine": EngineConfig(kind="transformers", model="nano-teacher")},
        {"model": "none", "calibration": "c.json"},
    ],
)
def test_settings_that_belong_to_another_tagger_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="tagger"):
        TaggerConfig(**options)  # type: ignore[arg-type]
