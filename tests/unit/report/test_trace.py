"""A trace says where a sample comes from and how it ended, for every kind of end, and says so where it cannot."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from report_runs import HOSTILE, make_run
from rich.console import Console
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.engines.openai import UNPINNED
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Call, Sample, Score
from infinity_mm.report.family import Family, record_of
from infinity_mm.report.lookup import NOT_RECORDED
from infinity_mm.report.trace import trace_image, trace_sample
from infinity_mm.report.trace_calls import revision_of, settings_of
from infinity_mm.report.trace_judgement import judgement_of
from infinity_mm.report.trace_print import print_image, print_sample, told
from infinity_mm.runtime.ledger import Line
from infinity_mm.runtime.run import Run

PASSES = ("read", "unique", "tag", "plan", "journeys", "dedup", "publish")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_run(tmp_path_factory.mktemp("traced"), patch)


@pytest.fixture(scope="module")
def last(run: Run) -> dict[str, Line]:
    """Id -> its last line in the whole run."""
    return {line.id: line for name in PASSES for line in run.ledger(name)}


def ended(last: dict[str, Line], fate: str, stage: str) -> str:
    return next(line.id for line in last.values() if (line.fate, line.stage) == (fate, stage))


def test_the_trace_of_every_id_agrees_with_the_ledger(run: Run, last: dict[str, Line]) -> None:
    for id_, line in sorted(last.items())[::15]:
        end = trace_sample(run, id_)["end"]
        assert (end["fate"], end["stage"], end["into"]) == (line.fate, line.stage, list(line.into)), id_


def test_a_kept_pair_leads_from_the_file_to_its_published_row(run: Run, last: dict[str, Line]) -> None:
    id_ = next(
        line.id for line in last.values()
        if line.fate == "merged" and line.stage == "merge" and last[line.into[0]].stage == "publish"
    )  # fmt: skip
    trace = trace_sample(run, id_)
    row = trace["end"]["then"]["published"]
    table = pq.read_table(row["path"])
    assert table["id"][row["row"]].as_py() == trace["end"]["into"][0]
    assert trace["image"]["files"][0]["source"] == "shots"
    assert trace["image"]["images"][0]["licence"] == HOSTILE[0]
    assert [tag["name"] for tag in trace["image"]["tags"]] == ["circle", "red", "square"]
    (plan,) = trace["plan"]
    assert plan["type"] == trace["made"]["instruction_type"]
    assert plan["examples"] == trace["made"]["examples_shown"]
    assert plan["fit_rank"] >= 1
    assert 1 <= plan["planned_of_type"] < plan["planned_in_all"]
    stages = [(step["id"], fate["stage"]) for step in trace["lineage"] for fate in step["fates"]]
    names = [stage for _, stage in stages]
    assert names[:5] == ["read", "unique", "tag", "plan", "spread"]
    assert names[-1] == "merge"


def test_every_call_has_its_prompt_settings_and_the_reply_as_journaled(
    run: Run, last: dict[str, Line]
) -> None:
    trace = trace_sample(run, ended(last, "merged", "merge"))
    calls = trace["calls"]
    assert [call["stage"] for call in calls][:4] == ["ask", "check", "answer", "judge"]
    assert {call["model"] for call in calls} == {"scripted@1"}
    ask = calls[0]
    assert ask["prompt"] == f"nano/ask@{PromptSet.load('nano').hash('ask')}"
    assert ask["prompt_text"] == PromptSet.load("nano").text("ask")
    assert ask["settings"]["stage"]["max_new_tokens"] == 48
    assert ask["settings"]["engine"] == {"kind": "scripted", "model": "hostile"}
    assert ask["temperature"] == 0.7
    assert trace["made"]["question"] in ask["reply"]["text"]
    assert calls[2]["reply"]["text"].startswith("It says")


def test_ten_published_samples_drawn_by_a_seed_answer_every_question_of_provenance(run: Run) -> None:
    drawn = random.Random(6).sample(sorted(sample.id for sample in run.samples("publish")), 10)
    rewritten = 0
    for id_ in drawn:
        trace = trace_sample(run, id_)
        end = trace["end"]["published"]
        row = pq.read_table(end["path"], columns=["id", "provenance"]).slice(end["row"], 1)
        assert row["id"].to_pylist() == [id_]
        published = json.loads(row["provenance"][0].as_py())
        # Which image, from where, under what licence, with which tags.
        (image,) = trace["image"]["images"]
        assert image["sha256"] == published["images"][0]["sha256"]
        assert (image["source"], image["licence"]) == ("shots", HOSTILE[0])
        file = Path(run.run_dir).parent / "images" / trace["image"]["files"][0]["key"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == image["sha256"]
        assert [tag["name"] for tag in trace["image"]["tags"]] == ["circle", "red", "square"]
        assert trace["image"]["tagger"]["fingerprint"] == "fake"
        assert [part["id"] for part in trace["parts"]] == [pair["id"] for pair in published["pairs"]]
        spoken = [turn["text"] for turn in trace["made"]["turns"] if turn["role"] == "assistant"]
        assert spoken == [part["made"]["answer"] for part in trace["parts"]]
        text = printed(print_sample, trace)
        assert all(f"{part['id']}: made" in text for part in trace["parts"])
        for part, pair in zip(trace["parts"], published["pairs"], strict=True):
            # Why this type.
            (plan,) = part["plan"]
            assert plan["type"] == pair["type"] == part["made"]["instruction_type"]
            assert "the image's tags fit it" in plan["why"]
            # Which prompt, model, revision and sampling made each part, and what was said.
            assert [{name: call[name] for name in pair["calls"][0]} for call in part["calls"]] == pair[
                "calls"
            ]
            for call in part["calls"]:
                assert call["prompt_text"] == PromptSet.load("nano").text(_prompt_name(call["prompt"]))
                assert (call["revision"], call["settings"]["engine"]["kind"]) == ("unpinned", "scripted")
                assert call["reply"]["text"]
            # What was scored, what was rewritten and why.
            answers = part["judgement"]["answers"]
            assert answers[-1]["answer"] == part["made"]["answer"]
            assert answers[-1]["score"]["overall"] == pair["score"]["overall"] == 9
            assert len(answers) == 1 + pair["rewritten"]
            if pair["rewritten"]:
                assert answers[0]["policy"].startswith("rewrite (score_between): 5.00")
            rewritten += pair["rewritten"]
    assert rewritten


def _prompt_name(label: str) -> str:
    return label.partition("/")[2].partition("@")[0]


def test_a_question_keeps_the_calls_and_labels_that_it_had_before_there_were_answers() -> None:
    call = Call(stage="ask", model="m", prompt="p", key="k", temperature=0, seed=0)
    stages = ("ask", "distinct", "critic", "critic.repair", "answer.options", "judge")
    pair = Sample(
        id="ab.q0.choice",
        images=(),
        question="Which?\nA. red\nB. blue",
        style="choice",
        answer="A. red",
        score=Score(overall=9),
        calls=tuple(replace(call, stage=stage, key=stage) for stage in stages),
    )
    pair = pair.with_label("critic", 1).with_label("critic_off_type", 1).with_label("loss", 0.5)
    record = {"sample": json.loads(pair.to_json()), "pass": "journeys", "detail": ""}
    family = Family(lines=[], records={pair.id: record}, published={})
    order = ("ask", "distinct", "critic", "styles", "answer", "loss", "judge", "merge")
    found = record_of("ab.q0", family, order)["sample"]
    assert found["question"] == "Which?"
    assert [call["stage"] for call in found["calls"]] == ["ask", "distinct", "critic", "critic.repair"]
    assert [label["name"] for label in found["labels"]] == ["critic", "critic_off_type"]
    said = {"stage": "critic.repair", "reply": {"text": '{"faults": ["off_type"], "reason": "It counts."}'}}
    judged = judgement_of(found, [said], {})
    assert isinstance(judged, dict)
    assert (judged["critic"], judged["answers"]) == ("It counts.", [])


def test_what_pins_the_weights_is_the_recorded_revision_or_hash_or_nothing() -> None:
    assert revision_of('openai: m@abc, {"detail": "high"}') == "abc"
    assert revision_of(f"openai: m@{UNPINNED}, {{}}") == "unpinned"
    weights = "0123456789abcdef" * 2
    assert revision_of(f"transformers: {weights}, float32") == f"weights {weights}"
    assert revision_of("scripted@1") == "unpinned"


@pytest.mark.parametrize(
    ("label", "role", "section"),
    [
        ("ask", "teacher", "ask"),
        ("distinct", "teacher", "ask"),
        ("critic.repair", "judge", "critic"),
        ("answer.options", "teacher", "choice"),
        ("answer.options.repair", "teacher", "choice"),
        ("judge.repair", "judge", "judge"),
        ("rewrite", "teacher", "rewrite"),
        ("rewrite.judge.repair", "judge", "judge"),
        ("blind", "judge", "blind"),
    ],
)
def test_a_call_is_told_with_the_engine_and_settings_that_it_was_made_with(
    label: str, role: str, section: str
) -> None:
    names = ("ask", "critic", "choice", "judge", "rewrite")
    config: dict[str, Any] = {name: {"of": name} for name in names} | {
        "blind": {"of": "blind", "role": "judge"}
    }
    config["engines"] = {"teacher": {"model": "t"}, "judge": {"model": "j", "revision": None}}
    found = settings_of(label, config)
    assert (found["role"], found["stage"]["of"]) == (role, section)
    assert found["engine"] == {"model": role[0]}


def test_a_prompt_that_has_changed_since_is_said_to_be_unknown(
    run: Run, last: dict[str, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    nano = PromptSet.load("nano")
    other = PromptSet(name="nano", texts={**nano.texts, "ask": "Something else"})
    monkeypatch.setattr(PromptSet, "load", classmethod(lambda cls, name: other))
    calls = trace_sample(run, ended(last, "merged", "merge"))["calls"]
    assert calls[0]["prompt_text"] == "not recorded: only its name and hash are"
    assert calls[1]["prompt_text"] == nano.text("check")


def test_a_rewritten_pair_tells_both_answers_and_the_policy(run: Run, last: dict[str, Line]) -> None:
    traces = (trace_sample(run, id_) for id_, line in last.items() if line.stage in ("merge", "rewrite"))
    trace = next(t for t in traces if t["judgement"] != "not judged" and t["judgement"]["rewritten"])
    first, second = trace["judgement"]["answers"]
    assert (
        first["policy"]
        == "rewrite (score_between): 5.00 by the expected score, kept from 8, rewritten from 4"
    )
    assert "mended" in second["answer"]
    assert [call["stage"] for call in trace["calls"]][-2:] == ["rewrite", "rewrite.judge"]


def test_a_dropped_question_says_why_and_by_which_reply(run: Run, last: dict[str, Line]) -> None:
    trace = trace_sample(run, ended(last, "dropped", "check"))
    assert told(trace["end"]) == "dropped in check: not_answerable"
    assert trace["calls"][-1]["reply"]["text"] == "no"


def test_a_quarantined_sample_names_the_call_that_failed(run: Run, last: dict[str, Line]) -> None:
    quarantined = [line for line in last.values() if line.fate == "quarantined"]
    by_reason = {line.reason: line.id for line in quarantined}
    score = trace_sample(run, by_reason["unreadable_score"])
    assert score["detail"] == "the reply was 'ten or so'"
    assert score["calls"][-1]["stage"] == "judge"
    assert score["calls"][-1]["reply"]["text"] == "ten or so"
    failed = trace_sample(run, by_reason["timeout"])
    assert failed["calls"][-1]["stage"] == "ask"
    assert failed["calls"][-1]["reply"] == NOT_RECORDED
    assert failed["calls"][-1]["failures"][0]["reason"] == "timeout"


def test_a_repeated_conversation_leads_to_the_one_that_stayed(run: Run, last: dict[str, Line]) -> None:
    trace = trace_sample(run, ended(last, "merged", "dedup"))
    assert trace["end"]["then"]["published"]["file"].startswith("train-")
    assert trace["made"]["turns"]


def test_a_broken_file_and_a_copy_have_their_ends(run: Run, last: dict[str, Line]) -> None:
    broken = trace_sample(run, ended(last, "dropped", "read"))
    assert broken["image"]["files"][0]["key"] == "broken.png"
    assert broken["image"]["sha256"] == NOT_RECORDED
    copy = trace_sample(run, ended(last, "merged", "unique"))
    assert copy["end"]["then"]["fate"] == "expanded"


def test_an_image_tells_all_its_files_samples_and_published_rows(run: Run, last: dict[str, Line]) -> None:
    target = next(line.into[0] for line in last.values() if (line.fate, line.stage) == ("merged", "unique"))
    sha256 = next(s.images[0].sha256 for s in run.samples("unique") if s.id == target)
    trace = trace_image(run, sha256[:20].upper())
    assert trace["sha256"] == sha256
    assert len(trace["image"]["files"]) == 2
    family = {id_ for id_ in last if id_.startswith(target)}
    assert {row["id"] for row in trace["samples"]} == family
    assert all(row["end"]["fate"] == last[row["id"]].fate for row in trace["samples"])
    assert len(trace["plan"]) == 3


def test_an_id_may_be_shortened_as_long_as_it_is_one(run: Run, last: dict[str, Line]) -> None:
    id_ = ended(last, "merged", "merge")
    head, _, tail = id_.partition(".")
    assert trace_sample(run, f"{head[:10]}.{tail}")["sample"] == id_
    images = sorted(id_ for id_ in last if "." not in id_)
    with pytest.raises(UserError, match=f"{len(images)} samples begin with ``") as error:
        trace_sample(run, "")
    assert images[0] in str(error.value)
    with pytest.raises(UserError, match="no sample of this run begins with `xyz`"):
        trace_sample(run, "xyz")
    with pytest.raises(UserError, match="images begin with ``"):
        trace_image(run, "")


def test_what_is_printed_holds_no_control_characters_and_no_markup(run: Run, last: dict[str, Line]) -> None:
    for id_ in sorted(last)[::25]:
        text = printed(print_sample, trace_sample(run, id_))
        assert id_ in text
        assert not {"\x1b", "\u202e", "\u2028", "\x00"} & set(text)
    sha256 = next(iter(run.samples("unique"))).images[0].sha256
    text = printed(print_image, trace_image(run, sha256))
    assert sha256 in text
    assert not {"\x1b", "\u202e", "\u2028"} & set(text)


def test_on_a_terminal_no_line_is_longer_than_the_terminal_and_in_a_file_none_is_cut(run: Run) -> None:
    trace = trace_sample(run, next(iter(run.samples("publish"))).id)
    out = io.StringIO()
    print_sample(trace, Console(file=out, width=110, force_terminal=True, color_system=None))
    assert max(len(line) for line in out.getvalue().splitlines()) <= 110
    assert repr(trace["calls"][0]["prompt_text"]) in printed(print_sample, trace)


def printed(show: Any, trace: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(trace, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_that_is_not_finished_can_be_traced(run: Run, last: dict[str, Line], tmp_path: Path) -> None:
    for name in ("dedup", "publish"):
        Path(run.path("manifest", name, "pass.json")).rename(tmp_path / name)
    try:
        end = trace_sample(run, ended(last, "continued", "publish"))["end"]
        assert end["reason"] == "made, and no pass has read it yet"
    finally:
        for name in ("dedup", "publish"):
            (tmp_path / name).rename(run.path("manifest", name, "pass.json"))


def test_the_command_prints_json_and_refuses_half_questions(run: Run, last: dict[str, Line]) -> None:
    id_ = ended(last, "dropped", "check")
    done = CliRunner().invoke(app, ["trace", run.run_dir, id_, "--json"])
    assert json.loads(done.stdout) == json.loads(json.dumps(trace_sample(run, id_)))
    done = CliRunner().invoke(app, ["trace", run.run_dir])
    assert isinstance(done.exception, UserError)
    assert "a sample id or an image" in str(done.exception)
