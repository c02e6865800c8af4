"""A prediction from real calls, one from arithmetic, and both beside the measurement when the run ends."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.config import load_config
from infinity_mm.engines import spec
from infinity_mm.errors import UserError
from infinity_mm.planning.gpus import load_gpus
from infinity_mm.planning.prediction import Prediction, predict, write_prediction
from infinity_mm.planning.sample import Sample, probe, reckon, shared_prefix
from infinity_mm.report.run_report import write_report
from infinity_mm.runtime.budget import BudgetConfig
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import config_digest, run_synthesis
from infinity_mm.taxonomy import tag_pass

sys.path.insert(0, str(Path(__file__).parents[1] / "synth"))
from test_synth_passes import FakeSpec  # pyright: ignore[reportMissingImports]
from test_synth_run import FakeTagger  # pyright: ignore[reportMissingImports]

TINY = Path(__file__).parents[3] / "configs" / "synth" / "tiny.yaml"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SynthConfig:
    monkeypatch.setattr(tag_pass, "ClipTagger", FakeTagger)
    monkeypatch.setitem(spec.KINDS, "fake", FakeSpec)
    return load_config(
        SynthConfig,
        TINY,
        [
            f"run_dir={tmp_path / 'run'}",
            "engines={teacher: {kind: fake}}",
            "read.sources=[{kind: windtunnel, num_images: 6, world_seed: 1}]",
        ],
    )


def predicted(config: SynthConfig, sample: Sample) -> Prediction:
    table = load_gpus()
    return predict(config, sample, table=table, gpus=table.pick(("H100",)), params_b=7.0)


def test_a_probe_of_all_images_predicts_what_the_run_then_measures(config: SynthConfig) -> None:
    sample = probe(config, 6)
    prediction = predicted(config, sample)
    assert prediction.is_measured
    assert prediction.num_sampled == prediction.num_images == 6
    write_prediction(config, prediction)
    found = run_synthesis(config).predicted
    assert found is not None
    assert found["calls"]["middle"] == found["calls"]["measured"] > 0
    assert found["pairs_kept"]["middle"] == found["pairs_kept"]["measured"] > 0
    assert json.loads((Path(config.run_dir) / "summary.json").read_text())["predicted"] == found
    write_report(config.run_dir)
    page = (Path(config.run_dir) / "report" / "index.html").read_text()
    assert "Prediction and measurement" in page


def test_a_probe_looks_at_a_fixed_part_of_the_images_and_speaks_for_all(config: SynthConfig) -> None:
    sample = probe(config, 3)
    assert (len(sample.images), sample.num_images) == (3, 6)
    assert probe(config, 3).images == sample.images
    assert not (Path(config.run_dir) / "run.json").exists()  # the run itself has not begun


def test_arithmetic_makes_no_call_and_is_never_below_what_is_measured(
    config: SynthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = run_synthesis(config)
    monkeypatch.setattr(FakeSpec, "say", None)
    sample = reckon(config, 5, kept_share=0.5)
    prediction = predicted(config, sample)
    assert not prediction.is_measured
    assert prediction.num_images == 6
    assert prediction.totals["calls"].middle >= sum(summary.calls.values())
    assert prediction.per_image["ask"]["calls"] == config.plan.questions_per_image
    assert prediction.per_image["answer"]["calls"] == 3 * config.plan.questions_per_image
    assert prediction.costs["H100"].usd_per_1000.middle > 0


def test_a_prediction_for_another_configuration_is_not_shown(config: SynthConfig) -> None:
    write_prediction(config, predicted(config, reckon(config, 2, kept_share=0.5)))
    assert run_synthesis(replace(config, policy=replace(config.policy, keep_at=9.0))).predicted is None


def test_made_up_replies_are_no_measurement(config: SynthConfig) -> None:
    with pytest.raises(UserError, match="replies are made up"):
        probe(replace(config, journal="simulate"), 2)


def test_a_budget_that_will_not_do_is_told_before_anything_is_spent(config: SynthConfig) -> None:
    sample = reckon(config, 2, kept_share=0.5)
    calls = predicted(config, sample).totals["calls"].middle
    small = replace(config, budget=BudgetConfig(requests=round(calls / 4)))
    assert any("stop after about 25%" in note for note in predicted(small, sample).notes)
    assert not any("stop after" in note for note in predicted(config, sample).notes)


def test_how_a_run_is_worked_does_not_change_what_is_predicted(config: SynthConfig) -> None:
    other = replace(config, budget=BudgetConfig(requests=5), images_in_flight=1, run_dir="/elsewhere")
    assert config_digest(other) == config_digest(config) != config_digest(replace(config, seed=9))


def test_the_image_is_read_once_by_each_model(config: SynthConfig) -> None:
    cached = shared_prefix(config, {"ask": 2.0, "check": 2.0}, ((280, 280),))
    assert cached == {"ask": 100.0, "check": 200.0}


def test_the_command_prints_stages_figures_and_prices(config: SynthConfig) -> None:
    arguments = ["plan", str(TINY), f"run_dir={config.run_dir}", "--gpu", "L40S", "--params-b", "7"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("rewrite", "pairs kept", "L40S", "no model was asked"))
    assert "H100" not in result.output
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(as_json.stdout)["costs"].keys() == {"L40S"}
