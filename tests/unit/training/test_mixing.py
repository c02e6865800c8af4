"""The data keys of a run: index, phases, quarantine, ledger."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_run import tiny_config

from infinity_mm.config import build
from infinity_mm.data.ledger import account
from infinity_mm.data.quarantine import read_quarantine
from infinity_mm.data.sources import build_source
from infinity_mm.errors import UserError
from infinity_mm.training.config import SftConfig
from infinity_mm.training.mixing import read_listed
from infinity_mm.training.sft import train


def chat(tmp_path: Path, name: str, answers: list[str]) -> dict[str, Any]:
    """A source of text rows."""
    rows = [
        {
            "id": f"{name}{i}",
            "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": a}],
        }
        for i, a in enumerate(answers)
    ]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"kind": "llava_json", "name": name, "options": {"path": str(path), "image_folder": str(tmp_path)}}


def steps_of(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "ledger.jsonl").read_text().splitlines()]


def test_a_run_keeps_a_ledger_and_its_quarantine_is_obeyed_by_the_next(tmp_path: Path) -> None:
    answers = ["red"] * 9 + [""]
    source = chat(tmp_path, "web", answers) | {"cap": 8}
    bad = json.loads((tmp_path / "web.jsonl").read_text().splitlines()[4])
    lines = (tmp_path / "web.jsonl").read_text().splitlines()
    lines[4] = json.dumps(bad | {"conversations": [{"from": "gpt", "value": "red"}]})
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    keys: dict[str, Any] = {
        "data": [source],
        "row_tokens": 64,
        "steps": 4,
        "index_dir": str(tmp_path / "index"),
    }
    first = train(tiny_config(tmp_path / "first", **keys), quiet=True)
    found = account(tmp_path / "first" / "ledger.jsonl")
    assert found.used == first.samples
    assert list(found.quarantined) == ["the roles are ['assistant']"]
    listed = read_quarantine(tmp_path / "first" / "quarantine.jsonl")
    assert [(entry.source, entry.id) for entry in listed] == [("web", "web4")]

    (tmp_path / "list.jsonl").write_text('{"source": "web", "id": "web2", "reason": "boring"}\n')
    train(tiny_config(tmp_path / "second", **keys, quarantine=str(tmp_path / "list.jsonl")), quiet=True)
    assert account(tmp_path / "second" / "ledger.jsonl").quarantined.keys() == {"listed", *found.quarantined}
    assert {e.id for e in read_quarantine(tmp_path / "second" / "quarantine.jsonl")} == {"web2", "web4"}

    changed = tiny_config(tmp_path / "second", **keys | {"steps": 6})
    with pytest.raises(UserError, match="the data itself"):
        train(changed, quiet=True)
    own = tmp_path / "second" / "quarantine.jsonl"
    with pytest.raises(UserError, match="would add to the list that it is given"):
        train(tiny_config(tmp_path / "second", **keys, quarantine=str(own)), quiet=True)


def test_a_list_holds_whether_or_not_a_source_is_cut_into_domains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = chat(tmp_path, "web", ["red"] * 12)
    rows = [json.loads(line) for line in (tmp_path / "web.jsonl").read_text().splitlines()]
    domains = ["ocr", "memes"] * 6
    lines = [json.dumps(row | {"source": domain}) for row, domain in zip(rows, domains)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    (tmp_path / "list.jsonl").write_text(
        '{"source": "web", "id": "web2", "reason": "boring"}\n{"source": "old", "id": "1", "reason": ""}\n'
    )
    keys: dict[str, Any] = {"row_tokens": 64, "index_dir": str(tmp_path / "index"),
                            "quarantine": str(tmp_path / "list.jsonl"),
                            "vision_tower": {"freeze": True}, "connector": {"freeze": True}}  # fmt: skip
    for name, domains in (("whole", {}), ("cut", {"ocr": 2})):
        config = tiny_config(tmp_path / name, data=[source | {"domains": domains}], **keys)
        train(config)
        left_out = {tuple(drop[3:5]) for step in steps_of(tmp_path / name) for drop in step["quarantined"]}
        assert left_out == {("web", "web2")}
        said = " ".join(capsys.readouterr().out.split())
        assert "1 of 2 entries of the quarantine list leave nothing out: `data` has no source old" in said


def test_a_list_that_goes_by_the_order_of_sources_without_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"source": "windtunnel-0", "id": "1", "reason": ""}\n')
    options = {"world_seed": 0, "num_images": 4}
    one: dict[str, Any] = {"kind": "windtunnel", "options": options}
    keys: dict[str, Any] = {"quarantine": str(tmp_path / "list.jsonl")}
    assert len(read_listed(tiny_config(tmp_path / "run", data=[one], **keys))) == 1
    with pytest.raises(UserError, match="the list names windtunnel-0, a name by place"):
        read_listed(tiny_config(tmp_path / "run", data=[one, one], **keys))


def test_the_decay_phase_has_its_own_data_also_after_a_stop(tmp_path: Path) -> None:
    good = chat(tmp_path, "good", ["green"] * 12) | {"weight": 0}
    data = [chat(tmp_path, "web", ["red"] * 12), good]
    phases = [{"start": "decay", "weights": {"web": 0.5, "good": 1}}]
    keys: dict[str, Any] = {"data": data, "row_tokens": 64, "mix_by_phase": phases, "save_every_steps": 3,
                            "vision_tower": {"freeze": True}, "connector": {"freeze": True}}  # fmt: skip
    train(tiny_config(tmp_path / "run", **keys), quiet=True)
    by_step = {entry["step"]: entry["used"] for entry in steps_of(tmp_path / "run")}
    assert [{key.split("/")[0] for key in by_step[step]} for step in range(1, 7)] == [{"0"}] * 4 + [{"1"}] * 2

    for checkpoint in ("checkpoint-6", "model"):
        (tmp_path / "run" / checkpoint).rename(tmp_path / checkpoint)
    whole = account(tmp_path / "run" / "ledger.jsonl")
    train(tiny_config(tmp_path / "run", **keys), quiet=True)  # goes on from step 3
    assert account(tmp_path / "run" / "ledger.jsonl") == whole


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mix_by_phase": [{"start": 2, "weights": {"wobb": 1}}]}, "mix_by_phase names wobb"),
        ({"mix_by_phase": [{"start": 2, "weights": {}}], "steps": None, "epochs": 1}, "given with epochs"),
        ({"data": [{"kind": "windtunnel", "name": "a"}] * 2}, "two sources have one name"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    plain = {"out_dir": tmp_path, "model": {"path": "x"}, "data": [{"kind": "windtunnel"}], "row_tokens": 8,
             "global_batch_rows": 1, "micro_batch_rows": 1, "steps": 1}  # fmt: skip
    with pytest.raises(UserError, match=problem):
        build(SftConfig, plain | changes)


def test_the_mixture_of_the_page_on_training_data_is_a_configuration() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training_data.md").read_text()
    keys = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    plain = {"out_dir": "x", "model": {"path": "x"}, "row_tokens": 8, "global_batch_rows": 1,
             "micro_batch_rows": 1, "steps": 1}  # fmt: skip
    config = build(SftConfig, plain | keys)
    assert [source.name for source in config.data] == ["stage3", "own", "web", "gold"]
    for source in config.data:
        build_source(source.kind, source.options)


def test_a_phase_of_a_decay_needs_a_schedule_that_decays(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        schedule={"name": "constant"},
        mix_by_phase=[{"start": "decay", "weights": {"windtunnel-0": 1}}],
    )
    with pytest.raises(UserError, match="schedule `constant` does not have"):
        train(config, quiet=True)
