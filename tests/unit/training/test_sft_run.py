"""Whole runs in one process: resume, refusals, errors that stop a run."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import tiny_config
from transformers import AutoModelForImageTextToText

from infinity_mm.errors import UserError
from infinity_mm.training import loop, sft
from infinity_mm.training.sft import train


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    schedule = {"name": "constant"}
    whole = train(tiny_config(tmp_path / "whole", schedule=schedule), quiet=True)
    train(tiny_config(tmp_path / "parts", schedule=schedule, steps=3), quiet=True)
    parts = train(tiny_config(tmp_path / "parts", schedule=schedule), quiet=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert (parts.samples, parts.images, parts.steps) == (whole.samples, whole.images, whole.steps)


def test_a_run_killed_between_checkpoints_does_its_last_steps_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config(tmp_path / "whole"), quiet=True)
    seen: list[int] = []

    def die_in_step_four(*args: Any, **keys: Any) -> Any:
        seen.append(1)
        if len(seen) == 7:  # two micro-steps a step
            raise KeyboardInterrupt
        return local_loss(*args, **keys)

    local_loss = loop.local_loss
    with monkeypatch.context() as patch:
        patch.setattr(loop, "local_loss", die_in_step_four)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tmp_path / "killed"), quiet=True)
    assert len(losses(tmp_path / "killed")) == 3
    train(tiny_config(tmp_path / "killed"), quiet=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tiny_config(tmp_path), quiet=True)
    again = train(tiny_config(tmp_path), quiet=True)
    assert again.loss is None
    assert (again.steps, again.model_dir) == (first.steps, first.model_dir)


def test_the_final_model_loads_in_transformers_and_starts_another_stage(tmp_path: Path) -> None:
    model_dir = train(tiny_config(tmp_path / "one"), quiet=True).model_dir
    assert model_dir is not None
    model = AutoModelForImageTextToText.from_pretrained(model_dir)
    assert type(model).__name__ == "InfinityMMForConditionalGeneration"
    result = train(tiny_config(tmp_path / "two", model={"path": str(model_dir)}, steps=3), quiet=True)
    assert result.loss is not None
    assert result.loss < losses(tmp_path / "one")[0]


def test_a_changed_configuration_is_refused_with_the_change_named(tmp_path: Path) -> None:
    train(tiny_config(tmp_path), quiet=True)
    with pytest.raises(UserError, match=r"row_tokens: 512 -> 640") as error:
        train(tiny_config(tmp_path, row_tokens=640), quiet=True)
    assert "choose a new out_dir" in str(error.value)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_and_names_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_loss = loop.local_loss
    monkeypatch.setattr(loop, "local_loss", lambda *a, **k: local_loss(*a, **k) * float("nan"))
    with pytest.raises(UserError, match=r"the optimiser was not stepped") as error:
        train(tiny_config(tmp_path), quiet=True)
    assert "windtunnel-0-" in str(error.value)


def test_sigterm_saves_and_ends_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config(tmp_path / "whole"), quiet=True)
    local_loss = loop.local_loss

    def terminate(*args: Any, **keys: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return local_loss(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "local_loss", terminate)
        stopped = train(tiny_config(tmp_path / "stopped", save_every_steps=100), quiet=True)
    assert stopped.model_dir is None
    assert 0 < stopped.steps < 6
    train(tiny_config(tmp_path / "stopped", save_every_steps=100), quiet=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_epochs_become_steps_by_counting_rows(tmp_path: Path) -> None:
    result = train(tiny_config(tmp_path, steps=None, epochs=1, schedule={"name": "constant"}), quiet=True)
    # The last step may be filled up from the next epoch, or leave the odd row of the first to it.
    assert abs(result.samples - 24) <= 6


def test_bf16_really_multiplies_in_bf16_and_keeps_float32_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types: set[torch.dtype] = set()
    start_model = sft.start_model

    def watched(*args: Any, **keys: Any) -> Any:
        started = start_model(*args, **keys)
        language_model: Any = started.model.model.language_model
        layer = language_model.layers[0].mlp.up_proj
        layer.register_forward_hook(lambda _m, _i, output: types.add(output.dtype))
        return started

    monkeypatch.setattr(sft, "start_model", watched)
    train(tiny_config(tmp_path, precision="bf16", steps=4), quiet=True)
    assert types == {torch.bfloat16}


def test_steps_and_epochs_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exactly one of steps and epochs"):
        tiny_config(tmp_path, epochs=1)


def test_a_model_comes_from_a_folder_or_from_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exactly one of model\.path and model\.build"):
        tiny_config(tmp_path, model={})
    with pytest.raises(UserError, match="is not a checkpoint folder"):
        train(tiny_config(tmp_path, model={"path": str(tmp_path / "nothing")}), quiet=True)
