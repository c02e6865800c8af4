"""Checkpoints appear whole or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_run import tiny_config

from infinity_mm.data.loader import LoaderState
from infinity_mm.errors import UserError
from infinity_mm.training.checkpoint import TrainerState, checkpoints, refuse_other_run, whole_folder
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
    kept = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


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
    state = TrainerState(
        step=3, loader=LoaderState(), total_steps=5, samples=0, tokens=0, images=0, dropped=0,
        data_fingerprint="f", config=config,
    )  # fmt: skip
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
