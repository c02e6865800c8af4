"""Tasks asked during a run: what is logged and kept, and that training does not notice."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_run import tiny_config

from infinity_mm.errors import UserError
from infinity_mm.training import measure
from infinity_mm.training.checkpoint import best_checkpoint, checkpoints
from infinity_mm.training.measure import Measure
from infinity_mm.training.metrics import StepMetrics, flat
from infinity_mm.training.sft import train

TASK = {
    "name": "world",
    "kind": "windtunnel",
    "options": {"world_seed": 3, "num_images": 4, "questions_per_image": 2},
    "every_steps": 2,
    "max_new_tokens": 4,
    "batch": 3,
}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder / "metrics.jsonl")]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_a_run_that_is_asked_learns_the_same_and_says_what_it_was_asked(tmp_path: Path) -> None:
    same = {"neftune_alpha": 5.0, "steps": 4, "schedule": {"name": "constant"}}
    train(tiny_config(tmp_path / "silent", **same), quiet=True)
    train(tiny_config(tmp_path / "asked", **same, tasks=[TASK]), quiet=True)
    assert losses(tmp_path / "asked") == losses(tmp_path / "silent")
    assert weights(tmp_path / "asked") == weights(tmp_path / "silent")

    asked = {line["step"]: line["tasks"] for line in lines(tmp_path / "asked" / "metrics.jsonl")}
    assert [bool(tasks) for tasks in asked.values()] == [False, True, False, True]
    assert (asked[2]["world"]["num_questions"], asked[2]["world"]["failures"]) == (8, 0)
    answered = lines(tmp_path / "asked" / "evaluation.jsonl")
    assert [(line["step"], line["task"]) for line in answered] == [(2, "world")] * 8 + [(4, "world")] * 8
    assert len({line["id"] for line in answered}) == 8
    right = [line["right"] for line in answered if line["step"] == 4]
    assert asked[4]["world"]["accuracy"] == sum(right) / 8


def test_a_resumed_run_measures_the_same_and_nothing_twice(tmp_path: Path) -> None:
    same = {"schedule": {"name": "constant"}, "tasks": [TASK | {"every_steps": 1}]}
    train(tiny_config(tmp_path / "whole", **same, steps=3), quiet=True)
    train(tiny_config(tmp_path / "parts", **same, steps=2), quiet=True)
    train(tiny_config(tmp_path / "parts", **same, steps=3), quiet=True)
    assert lines(tmp_path / "parts" / "evaluation.jsonl") == lines(tmp_path / "whole" / "evaluation.jsonl")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_best_checkpoint_may_follow_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invented = iter([0.2, 0.6, 0.4])
    accuracies = measure.accuracies
    monkeypatch.setattr(measure, "accuracies", lambda found: accuracies(found) | {"accuracy": next(invented)})
    changes = {"tasks": [TASK], "keep_best": "world", "keep_last": 1}
    train(tiny_config(tmp_path, **changes), quiet=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    assert best_checkpoint(tmp_path, "world") == tmp_path / "checkpoint-4"
    assert best_checkpoint(tmp_path) is None


def test_the_best_checkpoint_is_one_whose_task_was_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a checkpoint every 3 steps, but the task world is asked every 2"):
        tiny_config(tmp_path, tasks=[TASK], keep_best="world", save_every_steps=3)


def test_names_of_tasks_are_their_own_and_keep_best_is_one_of_them(tmp_path: Path) -> None:
    for changes in (
        {"tasks": [TASK, TASK]},
        {"tasks": [TASK | {"name": "held_out_loss"}]},
        {"keep_best": "world"},
    ):
        with pytest.raises(UserError, match="give every task a name of its own"):
            tiny_config(tmp_path, **changes)


def test_bfloat16_and_recomputed_activations_are_no_exception(tmp_path: Path) -> None:
    same = {"precision": "bf16", "gradient_checkpointing": True, "steps": 2, "schedule": {"name": "constant"}}
    train(tiny_config(tmp_path / "silent", **same), quiet=True)
    train(tiny_config(tmp_path / "asked", **same, tasks=[TASK | {"every_steps": 1}]), quiet=True)
    assert losses(tmp_path / "asked") == losses(tmp_path / "silent")


def test_the_model_is_given_back_as_it_was_also_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    ask = Measure._ask

    def watched(self: Measure, *args: Any) -> Any:
        model = self._model
        found["before"] = model.training, model.config._attn_implementation
        try:
            return ask(self, *args)
        finally:
            found["after"] = model.training, model.config._attn_implementation

    def fails(*args: Any, **keys: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Measure, "_ask", watched)
    monkeypatch.setattr(measure, "backend_for", fails)
    with pytest.raises(MemoryError):
        train(tiny_config(tmp_path, tasks=[TASK]), quiet=True)
    assert found["before"] == found["after"] == (True, "sdpa_float32")


def test_trackers_see_evaluation_apart_from_training() -> None:
    numbers = dict.fromkeys(("rows", "samples", "images", "tokens", "labels"), 1)
    floats = dict.fromkeys(
        ("loss", "grad_norm", "lr", "fill", "wait_s", "step_s", "tokens_per_s", "images_per_s"), 0.5
    )
    metrics = StepMetrics(
        step=3, samples_digest="", **numbers, **floats, held_out_loss=2.0, tasks={"world": {"accuracy": 0.25}}
    )
    values = flat(metrics)
    assert values["evaluation/world/accuracy"] == 0.25
    assert values["evaluation/held_out_loss"] == 2.0
    assert values["train/loss"] == 0.5
    assert "train/held_out_loss" not in values
