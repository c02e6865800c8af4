"""Checkpoints appear whole or not at all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_run import model_and_encoder, tiny_config

from infinity_mm.data.loader import LoaderState
from infinity_mm.errors import UserError
from infinity_mm.training.checkpoint import (
    TrainerState,
    Weights,
    checkpoints,
    refuse_other_run,
    save_checkpoint,
    whole_folder,
)
from infinity_mm.training.sft import train


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-3"
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:  # noqa: PT012
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert not target.exists()
    assert checkpoints(tmp_path) == []
    with whole_folder(target) as folder:
        (folder / "all").touch()
    assert [p.name for p in target.iterdir()] == ["all"]
    assert checkpoints(tmp_path) == [target]


def test_a_folder_that_exists_is_replaced_or_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("old", "new"):
        with whole_folder(target) as folder:
            (folder / name).touch()
    with pytest.raises(OSError, match="disk full"), whole_folder(target):
        raise OSError("disk full")
    assert [p.name for p in target.iterdir()] == ["new"]


def test_checkpoints_are_ordered_by_step_and_unfinished_ones_are_not_seen(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-11.partial", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_a_checkpoint_holds_no_pickle_and_only_the_last_are_kept(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, keep_last=1, save_dtype="float16"), quiet=True)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-6"]
    suffixes = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".jinja"}
    final = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.float16}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert [config["dtype"], config["text_config"]["dtype"]] == ["float16", "float16"]
    kept = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def state_of(step: int) -> TrainerState:
    return TrainerState(
        step=step, loader=LoaderState(), total_steps=5, samples=0, tokens=0, images=0, dropped=0,
        data_fingerprint="f", config={},
    )  # fmt: skip


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_none_without_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, *, ignore_errors: bool = False) -> None:
        if (folder / "trainer").is_dir():
            shutil.move(folder / "trainer", tmp_path / "gone")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tmp_path, keep_last=1), quiet=True)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-2.partial").is_dir()
    train(tiny_config(tmp_path, keep_last=1), quiet=True)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_checkpoint_says_float32_whatever_the_type_of_the_model_in_memory_at_that_moment(
    tmp_path: Path,
) -> None:
    """FSDP swaps in bfloat16 weights while it computes, and the writer works in the background."""
    model, encoder = model_and_encoder()
    weights = Weights(model={k: v.clone() for k, v in model.state_dict().items()}, optimizer={})
    before = model.config.dtype
    model.bfloat16()
    processor: Any = encoder.image_processor
    path = save_checkpoint(
        tmp_path, weights=weights, model=model, processor=processor, state=state_of(3), keep_last=1
    )
    assert json.loads((path / "config.json").read_text())["dtype"] == "float32"
    assert model.config.dtype == before


def test_tied_weights_are_written_once_in_any_dtype(tmp_path: Path) -> None:
    result = train(replace(tiny_config(tmp_path), save_dtype="float16"), quiet=True)
    assert result.model_dir is not None
    tensors = load_file(result.model_dir / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_another_configuration_is_refused_by_naming_what_differs_and_nothing_else() -> None:
    config = {
        "steps": 5,
        "seed": 0,
        "data": [{"kind": "a", "options": {"path": "x", "n": 1}}],
        "connector": None,
    }
    state = replace(state_of(3), config=config)
    other = config | {
        "steps": 9,
        "data": [{"kind": "a", "options": {"path": "y", "n": 1}}],
        "connector": {"lr": 1},
    }
    refuse_other_run(state, config | {"steps": 9}, "f", frozenset({"steps"}))
    with pytest.raises(UserError) as refused:
        refuse_other_run(state, other, "f", frozenset({"steps"}))
    first_line = str(refused.value).splitlines()[0]
    assert first_line.endswith("connector: None -> {'lr': 1}; data[0].options.path: 'x' -> 'y'")
    with pytest.raises(UserError, match="the data itself"):
        refuse_other_run(state, config, "g", frozenset())
