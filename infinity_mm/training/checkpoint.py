"""Checkpoints that appear whole or not at all, and hold no pickles.

    model, processor --HF folder--> checkpoint-N.partial --rename--> checkpoint-N
    optimiser, trainer state --safetensors, JSON--> checkpoint-N/trainer/

The folder loads in transformers as it is. The optimiser lies one level down, so that no server
takes it for weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from infinity_mm.data.loader import LoaderState
from infinity_mm.errors import explain
from infinity_mm.families.names import restore_names
from infinity_mm.storage.files import whole_folder
from infinity_mm.training import lora


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """Where a run stands; all a resumed run needs beside weights and optimiser."""

    step: int
    """Finished optimiser steps."""
    loader: LoaderState
    """The next row."""
    total_steps: int
    """Length of the run when this was written."""
    samples: int
    """Samples trained on."""
    tokens: int
    """Tokens trained on, padding left out."""
    images: int
    """Images trained on."""
    dropped: int
    """Samples dropped."""
    data_fingerprint: str
    """Of the mixture."""
    config: dict[str, Any]
    """The resolved configuration."""


def save_checkpoint(
    out_dir: Path,
    *,
    model: PreTrainedModel,
    adapter: Any = None,
    processor: ProcessorMixin,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    keep_last: int,
) -> Path:
    """Write `checkpoint-<step>` and remove the oldest beyond `keep_last`; of a model with adapters, these alone."""
    target = out_dir / f"checkpoint-{state.step}"
    with whole_folder(target) as folder:
        model.save_pretrained(folder) if adapter is None else lora.save(adapter, folder)
        processor.save_pretrained(folder)
        trainer = folder / "trainer"
        trainer.mkdir()
        save_file(optimizer_tensors(model, optimizer), trainer / "optimizer.safetensors")
        (trainer / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    for old in checkpoints(out_dir)[:-keep_last]:
        shutil.rmtree(old)
    return target


def save_model(
    target: Path,
    *,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dtype: str,
    names: Collection[str] = (),
) -> None:
    """Write the final model with weights of `dtype`; the model in memory stays as it is.

    `names`: those of the checkpoint it came from, which it gets back where transformers changes them.
    """
    torch_dtype: torch.dtype = getattr(torch, dtype)
    converted: dict[int, torch.Tensor] = {}  # by storage: tied weights stay tied, and are written once
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        dtype_now = torch_dtype if tensor.is_floating_point() else tensor.dtype
        tensors[name] = converted.setdefault(tensor.data_ptr(), tensor.to(dtype_now))
    before = model.config.dtype
    with whole_folder(target) as folder:
        try:
            _set_dtype(model, torch_dtype)
            model.save_pretrained(folder, state_dict=tensors)
            restore_names(folder, set(names))
        finally:
            _set_dtype(model, before)
        processor.save_pretrained(folder)


def save_adapter(target: Path, *, adapter: Any, processor: ProcessorMixin) -> None:
    """Write the final adapters."""
    with whole_folder(target) as folder:
        lora.save(adapter, folder)
        processor.save_pretrained(folder)


def _set_dtype(model: PreTrainedModel, dtype: Any) -> None:
    for part in (model.config, model.config.text_config, model.config.vision_config):
        part.dtype = dtype


def checkpoints(out_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in out_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state of a checkpoint."""
    data = json.loads((checkpoint / "trainer" / "state.json").read_text(encoding="utf-8"))
    return TrainerState(**{**data, "loader": LoaderState(**data["loader"])})


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state by parameter name: `<parameter>/<exp_avg, exp_avg_sq, step>`."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
    return tensors


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `optimizer_tensors`; raises UserError when a trained parameter is missing."""
    tensors = load_file(checkpoint / "trainer" / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = {k.rpartition("/")[2]: v for k, v in tensors.items() if k.rpartition("/")[0] == name}
        if not state:
            raise explain(
                what=f"the checkpoint has no optimiser state for {name}",
                where=str(checkpoint / "trainer" / "optimizer.safetensors"),
                fix="resume with the same parts frozen, or start a new run with model.path",
            )
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def refuse_other_run(
    state: TrainerState, config: dict[str, Any], fingerprint: str, may_change: frozenset[str]
) -> None:
    """Raise UserError when a run would be resumed with another configuration or other data."""
    changed = [
        difference
        for key in sorted({*state.config, *config} - may_change)
        for difference in _differences(key, state.config.get(key), config.get(key))
    ]
    if not changed and state.data_fingerprint != fingerprint:
        changed = ["the data itself (fingerprint of the sources)"]
    if changed:
        raise explain(
            what=f"out_dir holds a run at step {state.step} with another configuration; "
            + "; ".join(changed),
            where="resume",
            fix="choose a new out_dir, or undo the change; "
            f"without a new run only these may change: {', '.join(sorted(may_change))}",
        )


def _differences(name: str, before: Any, after: Any) -> list[str]:
    """`a.b: 1 -> 2` for every value that differs, as deep as both sides have the same form."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            text for key in keys for text in _differences(f"{name}.{key}", before.get(key), after.get(key))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [text for i, (old, new) in pairs for text in _differences(f"{name}[{i}]", old, new)]
    return [f"{name}: {before!r} -> {after!r}"]
