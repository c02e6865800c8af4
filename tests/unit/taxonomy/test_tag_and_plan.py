from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef, Sample, Tag
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.read_pass import ReadConfig, ReadPass
from infinity_mm.sources.unique_pass import UniquePass
from infinity_mm.taxonomy.clip_tagger import ClipTagger
from infinity_mm.taxonomy.mapping import Seed
from infinity_mm.taxonomy.plan_pass import PlanConfig, Planner, PlanPass
from infinity_mm.taxonomy.tag_pass import TagPass, TagWorker
from infinity_mm.taxonomy.tagger import TaggerConfig, choose_tags
from infinity_mm.windtunnel import questions, world


def sure(name: str, score: float) -> Tag:
    """A tag as the default tagger gives it, which brings its calibration."""
    return Tag(name=name, score=score, calibrated=True)


def test_tags_are_the_best_above_the_threshold() -> None:
    config = TaggerConfig(top_k=2, min_score=0.5)
    scores = {"red": 0.7, "star": 0.9, "blue": 0.6, "cross": 0.1}
    assert choose_tags(scores, config) == (sure("star", 0.9), sure("red", 0.7))
    assert choose_tags({"red": 0.4}, config) == ()


@pytest.mark.parametrize("options", [{"prompt": "a photo"}, {"top_k": 0}, {"min_score": 1.0}, {"top_k": 65}])
def test_a_tagger_that_cannot_work_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="tagger"):
        TaggerConfig(**options)  # type: ignore[arg-type]


def test_a_model_that_is_nowhere_is_an_error_that_says_what_to_give() -> None:
    with pytest.raises(UserError, match="no model folder /nothing"):
        ClipTagger(TaggerConfig(model="/nothing"))
    with pytest.raises(UserError, match="names no tagger"):
        ClipTagger(TaggerConfig(model="clip"))


class CountingTagger:
    """Says `red` of everything and counts."""

    fingerprint = "counting"

    def __init__(self) -> None:
        self.num_pictures = 0

    def scores(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        self.num_pictures += len(pictures)
        return [{"red": 0.9, "blue": 0.2} for _ in pictures]


def read_images(tmp_path: Path, num_images: int = 8) -> Run:
    run = Run(str(tmp_path / "run"))
    sources = (SourceConfig(kind="windtunnel", num_images=num_images, world_seed=1),)
    passes = [ReadPass(config=ReadConfig(sources=sources, images_per_unit=5)), UniquePass()]
    run_passes(passes, run, LocalExecutor())
    return run


def tag(run: Run, tagger: CountingTagger, unit: str = "00000") -> UnitResult:
    worker = TagWorker(pass_=TagPass(), run=run, tagger=tagger, journal=run.journal("test"))
    return asyncio.run(worker.run(Unit(id=unit, payload=None)))


def test_tags_that_came_with_an_image_stand_and_no_tagger_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tagger, own = read_images(tmp_path), CountingTagger(), (Tag(name="dog", score=0.99),)
    first, *others = run.unit_samples("unique", "00000")
    tagged = [dataclasses.replace(first, tags=own), *others]
    monkeypatch.setattr(Run, "unit_samples", lambda self, pass_name, unit_id: tagged)
    result = tag(run, tagger)
    assert tagger.num_pictures == result.metrics["images_scored"] == 4
    assert [sample.tags for sample in result.samples] == [own, *[(sure("red", 0.9),)] * 4]


def test_an_image_is_scored_once_and_replayed_from_the_journal(tmp_path: Path) -> None:
    run, tagger = read_images(tmp_path), CountingTagger()
    first, again = tag(run, tagger), tag(run, tagger)
    assert tagger.num_pictures == 5
    assert first.samples == again.samples
    assert first.samples[0].tags == (sure("red", 0.9),)
    assert (first.metrics["images_scored"], again.metrics["images_scored"]) == (5, 0)


def test_an_image_that_is_gone_is_dropped_with_its_record(tmp_path: Path) -> None:
    run = read_images(tmp_path)
    gone = run.unit_samples("unique", "00000")[0]
    Path(run.run_dir, gone.images[0].uri).unlink()
    result = tag(run, CountingTagger())
    assert [(row["id"], row["reason"]) for row in result.dropped] == [(gone.id, "missing_image")]
    assert len(result.samples) == 4


def image(id_: str, tags: tuple[str, ...]) -> Sample:
    ref = ImageRef(sha256=id_ * 64, uri="/x", width=64, height=64)
    return Sample(id=id_, images=(ref,), tags=tuple(Tag(name=name, score=1.0) for name in tags))


SEEDS = [
    Seed(tags=("bar chart",), type="chart/counting/bars", question="Count the bars."),
    Seed(tags=("table",), type="table/structure/items", question="Count the items in the table."),
    Seed(tags=("table",), type="table/structure/columns"),
]


def make_plan(samples: Sequence[Sample], **options: object) -> dict[str, list[dict[str, Any]]]:
    planner = Planner(PlanConfig(**options), seed=0, seeds=SEEDS)  # type: ignore[arg-type]
    (types,) = planner.choose([samples])
    return planner.plan(samples, types)


def plan(samples: Sequence[Sample], **options: object) -> dict[str, list[str]]:
    made = make_plan(samples, **options)
    return {id_: [entry["type"] for entry in entries] for id_, entries in made.items()}


ANYWHERE = "coarse/scene/image_kind"


def test_an_image_gets_types_that_suit_its_tags_and_one_without_tags_what_suits_any_image() -> None:
    made = plan([image("a", ("bar chart",)), image("b", ("table",)), image("c", ())])
    assert {id_: set(types) for id_, types in made.items()} == {
        "a": {"chart/counting/bars", ANYWHERE},
        "b": {"table/structure/columns", "table/structure/items", ANYWHERE},
        "c": {ANYWHERE},
    }


def test_what_suits_any_image_does_not_displace_what_the_tags_speak_for() -> None:
    samples = [image(id_, ("table",)) for id_ in "abcdef"]
    chosen = [type_ for types in plan(samples, questions_per_image=1).values() for type_ in types]
    assert sorted(Counter(chosen).values()) == [2, 2, 2]


def test_a_share_of_zero_switches_a_branch_off() -> None:
    samples = [image("a", ("bar chart",)), image("b", ("table",))]
    off = {"table": 0.0, "coarse": 0.0}
    assert plan(samples, shares=off) == {"a": ["chart/counting/bars"], "b": []}


def test_the_most_types_of_an_image_are_a_bound_on_what_its_tags_speak_for() -> None:
    seeds = [
        Seed(tags=("table",) * 1, type=type_)
        for type_ in ("table/structure/items", "table/structure/columns")
    ]
    planner = Planner(PlanConfig(top_k=1), seed=0, seeds=[*seeds, Seed(tags=("x",), type=seeds[0].type)])
    suitable = planner.suitable((Tag(name="table", score=1.0),))
    assert set(suitable) == {"table/structure/columns", ANYWHERE}


def test_two_different_examples_of_the_same_type_are_chosen_by_seed_and_sample() -> None:
    samples = [image(id_, ("table",)) for id_ in "abcdef"]
    made = [make_plan(order) for order in (samples, samples[::-1])]
    assert made[0] == made[1]
    pairs = [tuple(entry["examples"]) for entries in made[0].values() for entry in entries]
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert all(set(entry["examples"]) for entries in made[0].values() for entry in entries)
    assert len(set(pairs)) > 1


BUS = image("a", ("bus", "road"))


def test_without_seeds_a_tree_is_planned_by_the_tags_of_its_own_types() -> None:
    planner = Planner(PlanConfig(tree="default"), seed=0)
    assert "fine_single/recognition/vehicle" in planner.suitable(BUS.tags or ())
    assert planner.gaps == {"types_from_the_tree": list(planner.types), "types_without_seeds": []}


def test_a_type_that_no_seed_was_labelled_with_is_planned_by_its_own_tags(tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"tags": ["bus"], "type": "fine_single/text/sign_text", "question": "Where to?"}\n')
    planner = Planner(PlanConfig(tree="default", seeds=str(file), min_fit=0.1), seed=0)
    assert {"fine_single/text/sign_text", "fine_single/recognition/vehicle"} < set(
        planner.suitable(BUS.tags or ())
    )
    assert set(planner.types) - set(planner.gaps["types_from_the_tree"]) == {"fine_single/text/sign_text"}


def test_a_type_with_neither_seeds_nor_tags_is_named() -> None:
    gaps = Planner(PlanConfig(), seed=0, seeds=SEEDS).gaps
    assert "ocr/text/title" in gaps["types_without_seeds"]
    assert not {ANYWHERE, SEEDS[0].type} & set(gaps["types_without_seeds"])


def test_seeds_of_another_tree_are_refused() -> None:
    with pytest.raises(UserError, match="is of a type of the tree `default`"):
        Planner(PlanConfig(tree="default", seeds="windtunnel", num_seed_scenes=1), seed=0)


def planned(run: Run, unit: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads(run.read_file("plan", unit, "plan.json"))


def test_the_whole_way_from_drawn_images_to_a_plan(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    sources = (SourceConfig(kind="windtunnel", num_images=40, world_seed=1),)
    passes = [
        ReadPass(config=ReadConfig(sources=sources, images_per_unit=16)),
        UniquePass(),
        TagPass(),
        PlanPass(seed=0),
    ]
    run_passes(passes, run, LocalExecutor())
    units = [f"{number:05d}" for number in range(3)]
    made = {id_: entries for unit in units for id_, entries in planned(run, unit).items()}
    assert [len(planned(run, unit)) for unit in units] == [16, 16, 8]
    mapping = json.loads(run.read_file("plan", "00000", "mapping.json"))
    assert (mapping["tree"], mapping["types_from_the_tree"], mapping["types_without_seeds"]) == (
        "windtunnel", [], [],
    )  # fmt: skip
    samples = {sample.id: sample for sample in run.samples("plan")}
    assert set(made) == set(samples)
    assert all(sample.tags for sample in samples.values())
    scenes = {}
    for index in range(40):
        scene = world.sample_scene(world_seed=1, index=index, split="train")
        scenes[world.png_bytes(scene)] = scene
    entries = [
        entry["type"] in questions.types_for(scenes[run.images.read(samples[id_].images[0])])
        for id_, chosen in made.items()
        for entry in chosen
    ]
    assert sum(entries) / len(entries) > 0.8
    assert run_passes(passes, run, LocalExecutor()).passes[3].skipped
