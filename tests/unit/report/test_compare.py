from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.config import load_config
from infinity_mm.engines import spec
from infinity_mm.engines.base import Engine, ImageReader, Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef
from infinity_mm.report.compare import Comparison, _figures, compare
from infinity_mm.report.compare_page import render_comparison
from infinity_mm.report.works import Shown, Work, read_run
from infinity_mm.runtime.run import Run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.taxonomy import tag_pass

sys.path.insert(0, str(Path(__file__).parents[1] / "synth"))
from synth_fakes import FakeEngine, prompt_of  # pyright: ignore[reportMissingImports]
from test_synth_passes import FakeSpec  # pyright: ignore[reportMissingImports]
from test_synth_run import FakeTagger  # pyright: ignore[reportMissingImports]

TINY = Path(__file__).parents[3] / "configs" / "synth" / "tiny.yaml"


@dataclass(frozen=True, kw_only=True)
class BilingualSpec:
    """Opens an engine that answers in the language of the prompt and finds all of it good; it sees red everywhere."""

    model: str = ""
    """`same`: the same question is asked of every image."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        yield FakeEngine(self.say)

    def say(self, request: Request) -> Reply:
        if request.choices:
            return Reply(text="9" if "9" in request.choices else "yes")
        number = 0 if self.model == "same" else request.seed % 1000
        prompt = prompt_of(request)
        if prompt.startswith("Write one question"):
            return Reply(text=f"What color is number {number}?")
        if prompt.startswith("请就上面的图像"):
            return Reply(text=f"第{number}个是什么颜色\uff1f")
        return Reply(text="红色" if "请" in prompt or "回答" in prompt else "red")


BLIND = "stages=[ask, distinct, check, styles, answer, blind, judge, decide, rewrite, merge]"
SHORT = "styles.names=[short]"
POLICIES = {
    "strict": ("fake", 5, ()),
    "mild": ("fake", 4, ("policy.keep_at=1", "policy.rewrite_at=1")),
    "other": ("fake", 4, ("read.sources=[{kind: windtunnel, num_images: 4, world_seed: 9}]",)),
    "english": ("bilingual", 4, ("prompts=default",)),
    "chinese": ("bilingual", 4, ("prompts=chinese",)),
    "simulated_english": (
        "fake",
        4,
        ("prompts=default", "journal=simulate", "policy.keep_at=1", "policy.rewrite_at=1"),
    ),
    "simulated_chinese": (
        "fake",
        4,
        ("prompts=chinese", "journal=simulate", "policy.keep_at=1", "policy.rewrite_at=1"),
    ),
    "labelled": ("same", 4, ("prompts=default", BLIND, SHORT)),
    "capped": ("same", 4, ("prompts=default", BLIND, SHORT, "policy.blind=cap")),
    "limited": ("same", 4, ("prompts=default", BLIND, SHORT, "policy.max_repeats=1")),
    "near": ("same", 4, ("prompts=default", BLIND, SHORT, "dedup.radius_bits=31")),
}
"""Name -> teacher, number of the same images, what else is set."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> run directory."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tag_pass, "open_tagger", FakeTagger)
        patch.setitem(spec.KINDS, "fake", FakeSpec)
        patch.setitem(spec.KINDS, "bilingual", BilingualSpec)
        for name, (teacher, num_images, more) in POLICIES.items():
            kind = "{kind: bilingual, model: same}" if teacher == "same" else f"{{kind: {teacher}}}"
            source = f"read.sources=[{{kind: windtunnel, num_images: {num_images}, world_seed: 1}}]"
            base = [
                f"run_dir={home / name}",
                "plan.num_seed_scenes=5",
                f"engines={{teacher: {kind}}}",
                source,
            ]
            run_synthesis(load_config(SynthConfig, TINY, [*base, *more]))
    return {name: str(home / name) for name in POLICIES}


def test_two_policies_on_the_same_images_are_told_apart(runs: dict[str, str]) -> None:
    found = compare(runs["strict"], runs["mild"])
    assert (len(found.common), found.only_a, found.only_b) == (4, 1, 0)
    kept = {one.name: one for one in found.figures}["pairs kept an image"]
    assert kept.b > kept.a
    assert found.ends["decide: score_low"][1] == 0 < found.ends["decide: score_low"][0]
    of_strict = sum(len(work.kept) for work, _ in found.common.values())
    assert sum(a for a, _ in found.types.values()) == of_strict


def test_two_prompt_sets_are_compared_on_the_same_images(runs: dict[str, str]) -> None:
    found = compare(runs["english"], runs["chinese"])
    assert (len(found.common), found.only_a, found.only_b) == (4, 0, 0)
    assert found.settings == {"prompts": ('"default"', '"chinese"')}
    assert found.simulated == (False, False)
    for english, chinese in found.common.values():
        assert english.image == chinese.image
        assert {one.answer for one in english.kept} == {"red"}
        assert {one.answer for one in chinese.kept} == {"红色"}


def test_simulated_runs_are_compared_and_marked_as_such(runs: dict[str, str]) -> None:
    arguments = ["compare", runs["simulated_english"], runs["simulated_chinese"]]
    plain = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert plain["simulated"] == [True, True]
    assert plain["images"] == 4
    kept = next(one for one in plain["figures"] if one["name"] == "pairs kept an image")
    assert kept["a"] > 0  # would be kept: that none may be published is no difference between the two
    note = "Simulated, no model said any of it: A: simulated_english and B: simulated_chinese."
    assert note in Path(plain["page"]).read_text()
    assert note in CliRunner().invoke(app, arguments).output


@pytest.mark.parametrize(
    ("name", "end", "setting"),
    [
        ("capped", "cap: blind_over_cap", "policy.blind"),
        ("limited", "repeats: question_repeated", "policy.max_repeats"),
        ("near", "dedup: merged", "dedup.radius_bits"),
    ],
)
def test_what_a_pass_after_the_journeys_took_out_is_not_kept(
    runs: dict[str, str], name: str, end: str, setting: str
) -> None:
    found = compare(runs["labelled"], runs[name])
    assert list(found.settings) == [setting]
    published = {id_ for sample in Run(runs[name]).samples("publish") for id_ in sample.parents}
    assert sum(len(work.kept) for _, work in found.common.values()) == len(published)
    left, right = found.ends[end]
    assert left == 0
    assert right == sum(len(work.kept) for work, _ in found.common.values()) - len(published) > 0


def test_every_question_and_pair_of_a_run_is_counted_once(runs: dict[str, str]) -> None:
    works = read_run(runs["strict"])
    lines = list(Run(runs["strict"]).ledger("journeys"))
    assert sum(len(work.kept) for work in works.values()) == sum(line.fate == "merged" for line in lines)
    ended = sum(line.fate in ("dropped", "quarantined") for line in lines)
    assert sum(len(work.ended) for work in works.values()) == ended > 0


def test_runs_without_a_common_image_are_refused(runs: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no image is in both runs"):
        compare(runs["strict"], runs["other"])


def test_the_command_writes_a_page_with_every_picture_once_and_no_script(runs: dict[str, str]) -> None:
    arguments = ["compare", runs["strict"], runs["mild"]]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    page = Path(plain["page"]).read_text()
    assert page.count("data:image/webp") == plain["images"] == 4
    assert "<script" not in page
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert "different questions, share" in shown.output


PICTURE = ImageRef(sha256="ab" * 32, uri="/nowhere.png", width=64, height=48, phash="0" * 16)


def shown(question: str, *, score: float | None = 8.0, type_: str = "t", answer: str = "yes") -> Shown:
    return Shown(question=question, answer=answer, type=type_, style="short", score=score, end="kept")


def test_figures_are_over_the_same_images_with_an_interval_of_the_difference() -> None:
    a = [Work(image=PICTURE, kept=[shown("how many?", score=8)]) for _ in range(4)]
    b = [
        Work(image=PICTURE, kept=[shown("how many?", score=9), shown("where?", type_="u")]) for _ in range(4)
    ]
    found = {one.name: one for one in _figures(a, b)}
    kept = found["pairs kept an image"]
    assert (kept.a, kept.b, kept.low, kept.high) == (1, 2, 1, 1)
    assert (found["judge's score of kept pairs"].a, found["judge's score of kept pairs"].b) == (8, 8.5)
    assert found["instruction types covered"].b == 2
    assert found["spread over types, effective number"].b == pytest.approx(2)


def test_text_from_models_stays_text() -> None:
    hostile = shown('<img src=x onerror="alert(1)">', answer="</style><script>alert(2)</script>")
    work = Work(image=PICTURE, kept=[hostile])
    found = Comparison(only_a=0, only_b=0, common={"ab": (work, work)}, figures=(), ends={}, types={})
    page = render_comparison(found, names=("<b>A", "B"), runs=("/nowhere", "/nowhere"), most=5)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;b&gt;A" in page
    assert "missing_image" in page
