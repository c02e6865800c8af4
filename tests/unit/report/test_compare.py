from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.config import load_config
from infinity_mm.engines import spec
from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef
from infinity_mm.report.compare import Comparison, Shown, Work, _figures, compare, read_run
from infinity_mm.report.compare_page import render_comparison
from infinity_mm.runtime.run import Run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.taxonomy import tag_pass

sys.path.insert(0, str(Path(__file__).parents[1] / "synth"))
from test_synth_passes import FakeSpec  # pyright: ignore[reportMissingImports]
from test_synth_run import FakeTagger  # pyright: ignore[reportMissingImports]

TINY = Path(__file__).parents[3] / "configs" / "synth" / "tiny.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A strict and a mild policy on the same images, one image more for the strict one, and a run on others."""
    home = tmp_path_factory.mktemp("runs")
    mild = ("policy.keep_at=1", "policy.rewrite_at=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tag_pass, "ClipTagger", FakeTagger)
        patch.setitem(spec.KINDS, "fake", FakeSpec)
        for name, num_images, seed, policy in (
            ("strict", 5, 1, ()),
            ("mild", 4, 1, mild),
            ("other", 4, 9, ()),
        ):
            source = f"read.sources=[{{kind: windtunnel, num_images: {num_images}, world_seed: {seed}}}]"
            base = [f"run_dir={home / name}", "engines={teacher: {kind: fake}}", source]
            run_synthesis(load_config(SynthConfig, TINY, [*base, *policy]))
    return {name: str(home / name) for name in ("strict", "mild", "other")}


def test_two_policies_on_the_same_images_are_told_apart(runs: dict[str, str]) -> None:
    found = compare(runs["strict"], runs["mild"])
    assert (len(found.common), found.only_a, found.only_b) == (4, 1, 0)
    kept = {one.name: one for one in found.figures}["pairs kept an image"]
    assert kept.b > kept.a
    assert found.ends["decide: score_low"][1] == 0 < found.ends["decide: score_low"][0]
    of_strict = sum(len(work.kept) for work, _ in found.common.values())
    assert sum(a for a, _ in found.types.values()) == of_strict


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
