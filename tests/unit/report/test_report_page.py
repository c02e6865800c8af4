"""The page of a run: complete, honest about what it shows, and inert whatever a model or a file name says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, HUGE, Skeleton, make_run
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.errors import UserError
from infinity_mm.report.run_report import Report, ReportConfig, write_report
from infinity_mm.report.thumbs import OVER_BUDGET, Thumbnails
from infinity_mm.runtime.run import Run
from infinity_mm.synth.journey_pass import PAIRS_FILE


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Run:
    return make_run(tmp_path_factory.mktemp("hostile"), patch)


@pytest.fixture(scope="module")
def report(hostile: Run) -> Report:
    return write_report(hostile.run_dir, ReportConfig(per_section=200))


@pytest.fixture(scope="module")
def page(report: Report) -> Skeleton:
    return Skeleton(Path(report.path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Run:
    """The same run with harmless names and words."""
    return make_run(tmp_path_factory.mktemp("plain"), patch, model="plain")


def test_no_tag_and_no_attribute_comes_from_data(page: Skeleton, plain: Run) -> None:
    harmless = Skeleton(Path(write_report(plain.run_dir).path).read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    assert page.names() <= harmless.names()
    ids = [dict(attrs).get("id") for _, attrs in page.tags]
    assert {id_ for id_ in ids if id_ and not re.fullmatch(r"t\d+", id_)} <= {
        dict(attrs).get("id") for _, attrs in harmless.tags
    }
    links = [value for _, attrs in page.tags for name, value in attrs if name == "href"]
    assert all(value is not None and re.fullmatch(r"#[a-z]+", value) for value in links)


def test_the_only_running_script_is_the_one_the_policy_names(page: Skeleton) -> None:
    kinds = [dict(attrs).get("type") for tag, attrs in page.tags if tag == "script"]
    assert kinds.count(None) == 1
    assert set(kinds) == {None, "text/plain", "application/json"}
    metas = [dict(attrs) for tag, attrs in page.tags if tag == "meta"]
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    text = Path(__file__).parents[3].joinpath("infinity_mm/report/page.js").read_text()
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        ".style.",
        "cssText",
    ):
        assert way not in text


def test_every_hostile_word_is_on_the_page_as_text(page: Skeleton) -> None:
    said = " ".join(row["question"] + row["answer"] for row in page.data["rows"])
    for words in HOSTILE[:7]:
        assert words in said
    assert "\u202e" not in json.dumps(page.data, ensure_ascii=False)
    assert "⟨U+202E⟩txt.exe" in said


def test_a_text_of_a_million_characters_is_cut_and_says_so(page: Skeleton, report: Report) -> None:
    cut = [row["answer"] for row in page.data["rows"] if HUGE[:1000] in row["answer"]]
    assert cut
    assert all("characters, the first 2,000 are shown]" in text for text in cut)
    assert report.bytes < 3_000_000


def test_every_question_and_pair_of_a_small_run_is_there_with_its_fate(page: Skeleton, hostile: Run) -> None:
    manifest = hostile.manifest("journeys")
    assert manifest is not None
    lines = [line for unit in manifest.units
             for line in hostile.read_file("journeys", unit, PAIRS_FILE).decode().split("\n") if line]  # fmt: skip
    ids = {json.loads(line)["id"] for line in lines}
    set_aside = {row["id"]: "dropped" for row in hostile.dropped("journeys")}
    set_aside |= {row["id"]: "quarantined" for row in hostile.quarantined("journeys")}
    found = {row["id"]: row["fate"] for row in page.data["rows"] if row["pass"] == "journeys"}
    assert ids
    assert found.keys() == ids | set_aside.keys()
    assert {id_: fate for id_, fate in found.items() if id_ in set_aside} == set_aside
    assert {found[id_] for id_ in ids} == {"kept", "rewritten"}


def test_sections_show_what_they_promise(page: Skeleton) -> None:
    rows = page.data["rows"]
    sections = {section["name"]: section for section in page.data["sections"]}
    assert list(sections) == ["random", "best", "worst", "rewritten", "dropped", "quarantined", "repeats"]

    def shown(name: str) -> list[dict[str, Any]]:
        return [rows[place] for card in sections[name]["cards"] for place in card["rows"]]

    best = [row["score"] for row in shown("best")]
    assert best == sorted(best, reverse=True)
    assert [row["score"] for row in shown("worst")] == sorted(best)
    assert all(row["before"]["answer"] for row in shown("rewritten"))
    assert {row["fate"] for row in shown("dropped")} == {"dropped"}
    assert {row["fate"] for row in shown("quarantined")} == {"quarantined"}
    assert any(len(card.get("images", [])) == 2 for card in sections["repeats"]["cards"])


def test_a_rewrite_is_shown_as_what_was_put_in_and_taken_out(page: Skeleton) -> None:
    row = next(row for row in page.data["rows"] if row["fate"] == "rewritten")
    steps = row["before"]["diff"]
    assert "mended" in "".join(text for kind, text in steps if kind == "+")
    assert "".join(text for kind, text in steps if kind != "+") == row["before"]["answer"]


def test_lineage_leads_from_the_file_to_the_published_row(page: Skeleton) -> None:
    kept = [row for row in page.data["rows"] if row["fate"] == "kept"]
    assert any("turn of conversation" in row["went"] and "published" in row["went"] for row in kept)
    pairs = [row for row in kept if row["pass"] == "journeys"]
    assert all(row["calls"][0][:2] == ["ask", "scripted@1"] for row in pairs)
    files = [name for image in page.data["images"] for name in image["files"]]
    assert any("onmouseover" in name for name in files)
    assert any(len(image["files"]) == 2 for image in page.data["images"])


def test_the_funnel_counts_what_the_ledger_counts(page: Skeleton, hostile: Run) -> None:
    raw = Path(hostile.path("report", "index.html")).read_text(encoding="utf-8")
    summary = json.loads(Path(hostile.path("summary.json")).read_text())
    for stage, reasons in (summary["dropped"] | summary["quarantined"]).items():
        for reason, number in reasons.items():
            assert f'data-end="{stage}: {reason}"' in raw
            assert f"<bdi>{reason}</bdi> <b>{number:,}</b>" in raw


def test_the_same_run_and_seed_give_the_same_page(hostile: Run, report: Report) -> None:
    before = Path(report.path).read_bytes()
    again = write_report(hostile.run_dir, ReportConfig(per_section=200))
    assert again == report
    assert Path(report.path).read_bytes() == before


def test_a_small_sample_says_out_of_how_many(hostile: Run, report: Report) -> None:
    few = write_report(hostile.run_dir, ReportConfig(per_section=4))
    small = Skeleton(Path(few.path).read_text(encoding="utf-8"))
    assert few.sections["best"] == 4
    assert few.rows < few.rows_in_run == report.rows_in_run
    about = next(section["about"] for section in small.data["sections"] if section["name"] == "random")
    assert about.startswith("2 of 9 pictures, drawn with seed 0")
    write_report(hostile.run_dir, ReportConfig(per_section=200))


def test_pictures_beyond_the_budget_are_counted_as_left_out(hostile: Run) -> None:
    thumbs = Thumbnails(images=hostile.images, px=64, max_bytes=100)
    image = next(iter(hostile.samples("unique"))).images[0]
    assert thumbs.make(image) == OVER_BUDGET
    assert thumbs.left_out == {OVER_BUDGET: 1}


def test_a_picture_that_is_gone_is_named_as_such(plain: Run) -> None:
    file = Path(plain.run_dir).parent / "images" / "5.png"
    file.rename(file.with_suffix(".away"))
    written = write_report(plain.run_dir)
    file.with_suffix(".away").rename(file)
    assert written.pictures_left_out == {"missing_image": 1}


def test_a_folder_without_a_run_is_refused_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run with a committed pass"):
        write_report(str(tmp_path))


def test_the_command_prints_path_size_and_counts(hostile: Run, report: Report) -> None:
    done = CliRunner().invoke(app, ["report", hostile.run_dir, "--samples", "200", "--json"])
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said == report.to_plain()
    assert said["bytes"] == Path(said["path"]).stat().st_size
