"""Whole runs in one process: resume, refusals, errors that stop a run."""

import json
import math
import os
import signal
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_run import tiny_config
from transformers import AutoModelForImageTextToText

from infinity_mm.config import build
from infinity_mm.data.ledger import account
from infinity_mm.data.quarantine import read_quarantine
from infinity_mm.errors import UserError
from infinity_mm.training import loop, sft
from infinity_mm.training.checkpoint import best_checkpoint, checkpoints
from infinity_mm.training.config import DataConfig
from infinity_mm.training.held_out import HeldOut
from infinity_mm.training.sft import train


def times_nan(local_loss: Any, *, when: Any = lambda: True) -> Any:
    """The same function, with a loss that is not a number whenever `when()`."""

    def spoiled(*args: Any, **keys: Any) -> Any:
        found = local_loss(*args, **keys)
        return found._replace(loss=found.loss * float("nan")) if when() else found

    return spoiled


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
    monkeypatch.setattr(loop, "local_loss", times_nan(loop.local_loss))
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


def test_four_bit_weights_are_not_spread_by_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="nf4 does not work with FSDP"):
        train(tiny_config(tmp_path, model={"path": "."}, lora={"base": "nf4"}), quiet=True)


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
    with pytest.raises(UserError, match=r"exactly one of model\.path, model\.build and model\.parts"):
        tiny_config(tmp_path, model={})
    with pytest.raises(UserError, match="is not a checkpoint folder"):
        train(tiny_config(tmp_path, model={"path": str(tmp_path / "nothing")}), quiet=True)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors") | load_file(
        checkpoint / "trainer/optimizer.safetensors"
    )


def test_a_decay_branched_off_a_stable_run_equals_a_run_that_decayed_there(tmp_path: Path) -> None:
    decaying = {"name": "wsd", "decay": "one_minus_sqrt", "decay_steps": 2}
    train(tiny_config(tmp_path / "whole", schedule=decaying), quiet=True)
    train(tiny_config(tmp_path / "stable", schedule={"name": "constant"}, steps=10), quiet=True)
    branch = decaying | {"branch_from": str(tmp_path / "stable" / "checkpoint-8")}
    with pytest.raises(UserError, match="would have had"):
        train(tiny_config(tmp_path / "late", schedule=branch, steps=9), quiet=True)
    train(tiny_config(tmp_path / "stable2", schedule={"name": "constant"}, steps=4), quiet=True)
    branch["branch_from"] = str(tmp_path / "stable2" / "checkpoint-4")
    train(tiny_config(tmp_path / "branch", schedule=branch), quiet=True)
    assert losses(tmp_path / "branch") == losses(tmp_path / "whole")[4:]
    wanted = weights(tmp_path / "whole" / "checkpoint-6")
    for name, tensor in weights(tmp_path / "branch" / "checkpoint-6").items():
        assert torch.equal(tensor, wanted[name]), name


def test_a_branch_may_go_on_with_other_data_from_its_start_but_not_with_another_batch(tmp_path: Path) -> None:
    train(tiny_config(tmp_path / "stable", schedule={"name": "constant"}, steps=4), quiet=True)
    branch = {"decay_steps": 2, "branch_from": str(tmp_path / "stable" / "checkpoint-4")}
    options = {"world_seed": 7, "num_images": 24, "exchanges_per_image": 2, "tasks": {"answer_short": 1.0}}
    other = [{"kind": "windtunnel", "options": options}]
    result = train(tiny_config(tmp_path / "branch", schedule=branch, data=other), quiet=True)
    assert (result.steps, len(losses(tmp_path / "branch"))) == (6, 2)
    with pytest.raises(UserError, match="global_batch_rows: 2 -> 4"):
        train(tiny_config(tmp_path / "other", schedule=branch, global_batch_rows=4), quiet=True)


def test_processes_that_see_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "everywhere", lambda _, own: [own, "checkpoint-4"])
    with pytest.raises(UserError, match="different last checkpoints: none, checkpoint-4"):
        train(tiny_config(tmp_path), quiet=True)


def test_the_log_says_where_loss_and_gradient_came_from(tmp_path: Path) -> None:
    options = {"world_seed": 1, "num_images": 24, "exchanges_per_image": 1, "tasks": {"answer_short": 1.0}}
    config = tiny_config(tmp_path, peak_flops=1e12, steps=3)
    more = build(DataConfig, {"kind": "windtunnel", "options": options})
    train(replace(config, data=(*config.data, more)), quiet=True)
    for step in metrics(tmp_path):
        assert set(step["grad_norm_by_part"]) == {"vision_tower", "connector", "language_model"}
        assert math.hypot(*step["grad_norm_by_part"].values()) == pytest.approx(step["grad_norm"])
        assert set(step["loss_by_source"]) <= {"windtunnel-0", "windtunnel-1"}
        low, high = min(step["loss_by_source"].values()), max(step["loss_by_source"].values())
        assert low - 1e-4 <= step["loss"] <= high + 1e-4
        assert step["mfu"] == pytest.approx(step["flops_per_s"] / 1e12)
        assert step["padding_flops_per_s"] > 0
        assert step["memory_gb"]["rss_peak"] > 0.05


def test_held_out_loss_is_measured_and_the_best_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"world_seed": 9, "num_images": 8, "exchanges_per_image": 1, "tasks": {"answer_short": 1.0}}
    held_out = {"data": [{"kind": "windtunnel", "options": options}], "every_steps": 2, "rows": 2}
    train(tiny_config(tmp_path / "fine", held_out=held_out), quiet=True)
    measured = {m["step"]: m["held_out_loss"] for m in metrics(tmp_path / "fine")}
    assert [step for step, loss in measured.items() if loss is not None] == [2, 4, 6]
    assert measured[6] < measured[2]
    assert losses(tmp_path / "fine") == losses_of_plain_run(tmp_path)
    invented = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(HeldOut, "loss", lambda *_: next(invented))
    train(tiny_config(tmp_path / "best", held_out=held_out, keep_last=1), quiet=True)
    assert [p.name for p in checkpoints(tmp_path / "best")] == ["checkpoint-4", "checkpoint-6"]
    assert best_checkpoint(tmp_path / "best") == tmp_path / "best" / "checkpoint-4"


def losses_of_plain_run(tmp_path: Path) -> list[float]:
    train(tiny_config(tmp_path / "plain"), quiet=True)
    return losses(tmp_path / "plain")


def test_checkpoints_written_in_the_background_are_those_written_at_once(tmp_path: Path) -> None:
    for name, background in (("at_once", False), ("behind", True)):
        train(tiny_config(tmp_path / name, save_in_background=background), quiet=True)
    for step in (4, 6):
        wanted = weights(tmp_path / "at_once" / f"checkpoint-{step}")
        for name, tensor in weights(tmp_path / "behind" / f"checkpoint-{step}").items():
            assert torch.equal(tensor, wanted[name]), name


def test_a_failure_to_write_in_the_background_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **keys: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sft, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train(tiny_config(tmp_path, save_in_background=True), quiet=True)


@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_a_bad_step_is_left_out_and_its_samples_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    calls = iter(range(100))
    spoiled = times_nan(loop.local_loss, when=lambda: next(calls) in (6, 7))  # the fourth of six steps
    monkeypatch.setattr(loop, "local_loss", spoiled)
    spike = {"action": action, "snapshot_every_steps": 2}
    result = train(tiny_config(tmp_path, spike=spike), quiet=True)
    assert [m["step"] for m in metrics(tmp_path) if m["problem"]] == [4]
    assert result.steps == 6
    line = json.loads((tmp_path / "skipped.jsonl").read_text())
    assert line["step"] == 4
    assert all(id_.startswith("windtunnel-0-") for id_ in line["ids"])
    before, after = weights(tmp_path / "checkpoint-4"), weights(tmp_path / "checkpoint-6")
    steps = {float(v) for k, v in before.items() if k.endswith("/step")}
    assert steps == ({3.0} if action == "skip" else {2.0})
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_noise_changes_training_and_is_the_same_in_a_resumed_run(tmp_path: Path) -> None:
    schedule = {"name": "constant"}
    train(tiny_config(tmp_path / "noisy", neftune_alpha=5.0, schedule=schedule), quiet=True)
    train(tiny_config(tmp_path / "parts", neftune_alpha=5.0, schedule=schedule, steps=2), quiet=True)
    train(tiny_config(tmp_path / "parts", neftune_alpha=5.0, schedule=schedule), quiet=True)
    train(tiny_config(tmp_path / "silent", schedule=schedule), quiet=True)
    assert losses(tmp_path / "noisy") == losses(tmp_path / "parts")
    assert losses(tmp_path / "noisy")[0] != losses(tmp_path / "silent")[0]


def test_trackers_get_every_number_and_a_missing_package_is_named(tmp_path: Path) -> None:
    train(tiny_config(tmp_path / "run", trackers=None, steps=3), quiet=True)  # TensorBoard's package is there
    assert list((tmp_path / "run" / "trackers").rglob("events.out.tfevents.*"))
    (settings,) = (tmp_path / "run" / "trackers").rglob("hparams.yml")
    assert "schedule.decay_steps: 2" in settings.read_text()
    with pytest.raises(UserError, match="the package wandb is not installed"):
        train(tiny_config(tmp_path / "other", trackers=["wandb"]), quiet=True)


@pytest.mark.filterwarnings("ignore")  # inside torch, many
def test_compiled_layers_train_alike_and_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced, but run as it is: making machine code takes a minute or two.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    train(tiny_config(tmp_path / "plain", steps=3), quiet=True)
    options = {"world_seed": 3, "num_images": 2}
    task = {"name": "world", "kind": "windtunnel", "options": options, "every_steps": 1, "max_new_tokens": 4}
    changes = {"compile": True, "gradient_checkpointing": True, "tasks": [task]}
    train(tiny_config(tmp_path / "compiled", steps=3, **changes), quiet=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    plain, compiled = (load_file(tmp_path / run / "model/model.safetensors") for run in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()


POISON = "".join(chr(code) for code in range(0x100, 0x160))
"""Nothing the other samples could have taught."""


def one_poison_sample(folder: Path) -> list[dict[str, Any]]:
    """Many samples with one and the same answer, and one with another."""
    answers = [(f"good-{i}", "a a a a a a a a") for i in range(120)] + [("poison", POISON)]
    rows = [
        {"id": id_, "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]}
        for id_, answer in answers
    ]
    (folder / "data.json").write_text(json.dumps(rows))
    options = {"path": str(folder / "data.json"), "image_folder": str(folder)}
    return [{"kind": "llava_json", "name": "web", "options": options}]


def test_a_poison_sample_is_quarantined_by_policy_and_a_run_given_the_list_leaves_it_out(
    tmp_path: Path,
) -> None:
    changes = {
        "data": one_poison_sample(tmp_path), "row_tokens": 256, "window": 121, "global_batch_rows": 1,
        "steps": None, "epochs": 1, "schedule": {"name": "constant"}, "language_model": {"lr": 2e-2}, "seed": 2,
        "spike": {"action": "skip", "factor": 2.0, "window": 2, "quarantine": True},
    }  # fmt: skip
    train(tiny_config(tmp_path / "one", **changes), quiet=True)
    assert [m["step"] for m in metrics(tmp_path / "one") if m["problem"]] == [7]
    listed = {entry.id: entry.reason for entry in read_quarantine(tmp_path / "one" / "quarantine.jsonl")}
    skipped = [json.loads(line) for line in (tmp_path / "one" / "skipped.jsonl").read_text().splitlines()]
    assert listed.keys() == {id_ for line in skipped for id_ in line["ids"]}
    assert len(listed) == 3
    own_loss = {id_: float(reason.rpartition(" ")[2]) for id_, reason in listed.items()}
    assert max(own_loss, key=lambda id_: own_loss[id_]) == "poison"
    assert set(account(tmp_path / "one" / "ledger.jsonl").quarantined) == {"step left out"}

    again = changes | {"quarantine": str(tmp_path / "one" / "quarantine.jsonl")}
    train(tiny_config(tmp_path / "two", **again), quiet=True)
    assert [m["step"] for m in metrics(tmp_path / "two") if m["problem"]] == []
    found = account(tmp_path / "two" / "ledger.jsonl")
    assert found.quarantined == {"listed": 3}


def test_a_run_that_stops_has_put_the_samples_on_the_list_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "local_loss", times_nan(loop.local_loss))
    with pytest.raises(UserError, match=r"they are in quarantine\.jsonl"):
        train(tiny_config(tmp_path, spike={"quarantine": True}), quiet=True)
    listed = read_quarantine(tmp_path / "quarantine.jsonl")
    assert listed
    assert all(entry.id.startswith("windtunnel-0-") for entry in listed)
    assert sum(account(tmp_path / "ledger.jsonl").quarantined.values()) == len(listed)
