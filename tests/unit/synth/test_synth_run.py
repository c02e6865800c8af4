"""A whole run with a fake teacher and a fake tagger, and the configurations that ship."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import pickle
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from synth_fakes import FakeEngine
from test_synth_passes import FakeSpec

from infinity_mm.config import build, load_config, to_plain
from infinity_mm.engines import spec
from infinity_mm.engines.base import Engine, Failure, ImageReader, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.errors import UserError
from infinity_mm.eval.windtunnel import MemoryImages
from infinity_mm.formats.convert import export_data
from infinity_mm.prompts import PromptSet
from infinity_mm.publishing.run_bundle import run_bundle
from infinity_mm.runtime.run import Run
from infinity_mm.sources.config import SourceConfig
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import described, run_synthesis
from infinity_mm.synth.stage import check_engines
from infinity_mm.synth.stages import build_stages
from infinity_mm.taxonomy import tag_pass
from infinity_mm.taxonomy.tree import Tree

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "synth").glob("*.yaml"))


class FakeTagger:
    """Sees the same in every picture."""

    fingerprint = "fake"

    def __init__(self, config: object) -> None:
        pass

    def scores(self, pictures: Sequence[object]) -> list[dict[str, float]]:
        return [{"circle": 0.9, "red": 0.8, "square": 0.7} for _ in pictures]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SynthConfig:
    monkeypatch.setattr(tag_pass, "open_tagger", FakeTagger)
    monkeypatch.setitem(spec.KINDS, "fake", FakeSpec)
    overrides = [
        f"run_dir={tmp_path / 'run'}",
        "engines={teacher: {kind: fake}}",
        "read.sources=[{kind: windtunnel, num_images: 6, world_seed: 1}]",
    ]
    return load_config(SynthConfig, ROOT / "configs" / "synth" / "tiny.yaml", overrides)


@dataclass(frozen=True, kw_only=True)
class ScoringSpec(FakeSpec):
    """Guesses right every other time, and finds an answer unlikely where there is a 3 in the question."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        yield FakeEngine(self.say, likelihood=self.score)

    def say(self, request: Request) -> Reply | Failure:
        if not request.images:
            return Reply(text="blue" if request.seed % 2 else "red")
        return FakeSpec.say(self, request)

    def score(self, scoring: Scoring) -> Likelihood:
        is_odd = "3" in scoring.turns[-2].text
        return Likelihood(mean_logprob=-5.0 if is_odd else -0.5, num_tokens=4)


def pipeline() -> ModuleType:
    found = importlib.util.spec_from_file_location("synth_pipeline", ROOT / "pipelines" / "synth.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_configuration_loads_builds_and_comes_back_equal(file: Path) -> None:
    loaded = load_config(SynthConfig, file)
    build_stages(loaded, Tree.load(loaded.plan.tree), PromptSet.load(loaded.prompts))
    assert build(SynthConfig, to_plain(loaded)) == loaded
    names = ["read", "unique", "tag", "plan", "journeys", "dedup", "publish"]
    if loaded.policy.blind == "cap":
        names.insert(names.index("dedup"), "cap")
    if loaded.dedup.count_questions:
        names.insert(names.index("publish"), "repeats")
    assert [each.name for each in loaded.passes()] == names


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_passes_survive_the_way_to_a_worker(file: Path) -> None:
    passes = load_config(SynthConfig, file).passes()
    assert pickle.loads(pickle.dumps(passes)) == passes


def test_the_real_configuration_asks_an_openai_compatible_server() -> None:
    loaded = load_config(SynthConfig, ROOT / "configs" / "synth" / "qwen2_5_vl.yaml")
    assert isinstance(loaded.engines.teacher.spec(), OpenAISpec)
    assert loaded.prompts == "default"


@pytest.mark.parametrize("name", ["qwen2_5_vl", "infinity_mm"])
def test_a_real_configuration_asks_its_servers_for_nothing_they_cannot_do(name: str) -> None:
    loaded = load_config(SynthConfig, ROOT / "configs" / "synth" / f"{name}.yaml")
    stages = build_stages(loaded, Tree.load(loaded.plan.tree), PromptSet.load(loaded.prompts))

    async def check() -> None:
        configs = loaded.engines
        specs = {"teacher": configs.teacher, "judge": configs.judge, "scorer": configs.scorer}
        async with AsyncExitStack() as stack:
            engines = {
                role: await stack.enter_async_context((config or configs.teacher).spec().open(MemoryImages()))
                for role, config in specs.items()
            }
            check_engines(stages, engines)

    asyncio.run(check())


FILTERED = [
    "stages=[ask, distinct, check, styles, answer, blind, loss, judge, decide, rewrite, merge]",
    "policy={keep_at: 1, rewrite_at: 1, max_loss: 2.5, blind: cap, max_blind_share: 0.2}",
]


def test_a_run_with_filters_drops_what_the_policy_says_and_accounts_for_it(
    config: SynthConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spec.KINDS, "scoring", ScoringSpec)
    overrides = [
        f"run_dir={tmp_path / 'filtered'}",
        "engines={teacher: {kind: scoring}, scorer: {kind: scoring}}",
        "read.sources=[{kind: windtunnel, num_images: 6, world_seed: 1}]",
        *FILTERED,
    ]
    filtered = load_config(SynthConfig, ROOT / "configs" / "synth" / "tiny.yaml", overrides)
    assert [each.name for each in filtered.passes()][4:] == ["journeys", "cap", "dedup", "publish"]
    summary = run_synthesis(filtered)
    num_pairs = summary.fates["answer"]["continued"]
    assert summary.calls["blind"] == summary.calls["loss"] == summary.calls["judge"] == num_pairs
    num_questions = summary.fates["styles"]["expanded"]
    assert summary.calls_from_journal == num_pairs - num_questions, "one guess a question"
    assert set(summary.dropped["decide"]) == {"loss_high"}
    assert 0 < summary.pairs_taken_out["cap"] < summary.fates["merge"]["merged"]
    assert summary.pairs_kept == summary.fates["merge"]["merged"] - summary.pairs_taken_out["cap"]
    assert summary.pairs_kept == sum(summary.types_covered.values())
    rows = [row for file in summary.published for row in pq.read_table(file).to_pylist()]
    pairs = [pair for row in rows for pair in row["pairs"]]
    assert len(pairs) == sum(len(row["messages"]) // 2 for row in rows) == summary.pairs_kept
    assert {pair["loss"] for pair in pairs} == {0.5}
    assert {pair["blind"] for pair in pairs} <= {0.0, 1.0}


def test_the_loss_is_refused_without_a_model_that_scores() -> None:
    with pytest.raises(UserError, match=r"engines\.scorer"):
        load_config(SynthConfig, ROOT / "configs" / "synth" / "tiny.yaml", FILTERED)


def test_the_described_configuration_names_the_trees_version_and_content() -> None:
    loaded = load_config(SynthConfig, ROOT / "configs" / "synth" / "qwen2_5_vl.yaml")
    fingerprint = Tree.load("default").fingerprint
    assert described(loaded)["tree"] == {"name": "default", "version": "1", "fingerprint": fingerprint}


def test_a_share_that_the_tree_does_not_have_is_refused_before_the_first_image_is_read(
    config: SynthConfig,
) -> None:
    wrong = replace(config, plan=replace(config.plan, shares={"charts": 2.0}))
    with pytest.raises(UserError, match="nothing at `charts`"):
        run_synthesis(wrong)
    assert not Path(config.run_dir, "run.json").exists()


def test_a_run_goes_from_images_to_published_rows_and_its_sums_agree(config: SynthConfig) -> None:
    summary = run_synthesis(config)
    assert summary.images_read == 6
    assert summary.fates["spread"] == {"expanded": 6}
    assert summary.calls["ask"] == summary.questions_planned == sum(summary.fates["ask"].values())
    assert summary.calls["judge"] == summary.calls["answer"] == sum(summary.fates["answer"].values())
    assert summary.pairs_kept == summary.fates["merge"]["merged"] == sum(summary.types_covered.values())
    assert summary.dropped["decide"].keys() == {"score_low"}
    for counts in summary.passes.values():
        came = counts["in"] + counts["born"]
        assert came == sum(number for key, number in counts.items() if key not in ("in", "born"))
    assert [Path(file).exists() for file in summary.published] == [True]
    written = json.loads((Path(config.run_dir) / "summary.json").read_text())
    assert written["conversations"] == summary.conversations > 0


def test_the_same_command_again_asks_nobody_and_says_the_same(config: SynthConfig) -> None:
    first = run_synthesis(config)
    again = run_synthesis(replace(config, images_in_flight=3, journal="replay"))
    assert replace(again, wall_s=0, phase_s={}) == replace(first, wall_s=0, phase_s={})


def test_another_cut_off_in_the_same_run_directory_is_refused(config: SynthConfig) -> None:
    run_synthesis(config)
    with pytest.raises(UserError, match=r"policy\.keep_at: 8\.0 -> 9\.0"):
        run_synthesis(replace(config, policy=replace(config.policy, keep_at=9.0)))


def test_a_policy_that_rewrites_needs_a_stage_that_does(config: SynthConfig) -> None:
    with pytest.raises(UserError, match=r"set policy\.rewrite_at to null"):
        replace(config, stages=tuple(name for name in config.stages if name != "rewrite"))


def test_a_wrong_stage_list_is_refused_before_anything_is_read(config: SynthConfig) -> None:
    with pytest.raises(UserError, match="which nothing before it writes"):
        run_synthesis(
            replace(config, stages=("check", "ask", "merge"), policy=replace(config.policy, rewrite_at=None))
        )
    assert not Path(config.run_dir).exists()


def test_the_report_shows_every_stage_and_every_reason(config: SynthConfig) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    pipeline().report(run_synthesis(config), console)
    text = console.export_text()
    assert all(stage in text for stage in config.stages)
    assert "score_low" in text
    assert "train-00000-of-00001" in text


def test_the_entry_script_is_a_table_of_contents() -> None:
    assert len((ROOT / "pipelines" / "synth.py").read_text().splitlines()) < 120


def test_a_simulated_run_walks_every_stage_asks_nobody_and_publishes_nothing(
    config: SynthConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asked(self: FakeSpec, request: Request) -> Reply:
        raise AssertionError("a simulated run asked a model")

    monkeypatch.setattr(FakeSpec, "say", asked)
    summary = run_synthesis(replace(config, journal="simulate"))
    assert summary.calls_simulated == sum(summary.calls.values()) - summary.calls_failed > 0
    assert [stage for stage in (*config.stages, "dedup", "publish") if not summary.fates[stage]] == []
    assert summary.conversations == 0
    assert summary.dropped["publish"] == {"simulated": summary.passes["publish"]["in"]}
    run = Run(config.run_dir)
    pairs = [pair for _, file in run.committed_files("journeys") for pair in read_jsonl(_bytes(run, file))]
    assert pairs
    assert all(call["simulated"] for pair in pairs for call in pair["sample"]["calls"])
    for leave in (
        lambda: export_data(Path(config.run_dir), "messages", tmp_path / "out"),
        lambda: run_bundle(config.run_dir, repo="me/set"),
    ):
        with pytest.raises(UserError, match="no model said any of it"):
            leave()


def test_a_simulated_run_does_not_publish_what_came_with_an_image_either(
    config: SynthConfig, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A wall."}]
    listed = tmp_path / "llava.json"
    listed.write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    source = SourceConfig(kind="llava", path=str(listed), image_root=str(tmp_path))
    read = replace(config.read, sources=(source,))
    nothing_made = replace(config.policy, keep_at=10, rewrite_at=None)
    run_synthesis(replace(config, read=read, policy=nothing_made, journal="simulate"))
    run = Run(config.run_dir)
    (conversation,) = run.samples("journeys")
    assert (conversation.parents, conversation.calls) == ((f"{conversation.id[:16]}.source",), ())
    assert [row["reason"] for row in run.dropped("publish")] == ["simulated"]


def test_after_a_simulated_run_a_real_one_in_the_same_directory_takes_nothing_from_it(
    config: SynthConfig,
) -> None:
    simulated = run_synthesis(replace(config, journal="simulate"))
    summary = run_synthesis(config)
    assert summary.conversations > 0
    assert (summary.calls_simulated, summary.calls_from_journal) == (0, 0)
    assert run_synthesis(replace(config, journal="simulate")).fates == simulated.fates


def _bytes(run: Run, file: str) -> bytes:
    return Path(run.path(file)).read_bytes()
