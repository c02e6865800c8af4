"""Checkpoints that appear whole or not at all, and hold no pickles.

    model, optimiser --gather--> tensors of the main process
    model, processor --HF folder--> checkpoint-N.partial --rename--> checkpoint-N
    optimiser, trainer state --safetensors, JSON--> checkpoint-N/trainer/

The folder loads in transformers as it is. The optimiser lies one level down, so that no server
takes it for weights.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from infinity_mm.data.loader import LoaderState
from infinity_mm.errors import explain
from infinity_mm.families.names import restore_names
from infinity_mm.storage.files import PARTIAL, whole_folder
from infinity_mm.training import lora
from infinity_mm.training.config import HELD_OUT_LOSS
from infinity_mm.training.sharding import set_state, whole, whole_state


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
    skipped: int = 0
    """Samples of steps that were left out for a bad loss."""
    recent_losses: tuple[float, ...] = ()
    """What the next loss is compared with."""
    measured: dict[str, float] = field(default_factory=dict)
    """What was measured after just this step: `held_out_loss`, and the accuracy of each task by its name."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A run's tensors in CPU memory; empty on all processes but the main one."""

    model: dict[str, Tensor]
    """By the names of the model's state; tied weights are one tensor."""
    optimizer: dict[str, Tensor]
    """Optimiser state by parameter name: `<parameter>/<exp_avg, exp_avg_sq, step>`."""


def gather(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    keep: bool,
    copy: bool = False,
    trained_only: bool = False,
) -> Weights:
    """All tensors of a run, or of its model the trained ones; every process must call it, those with `keep` get them.

    With `copy` they share no memory with the run, which may then go on.
    """
    same: dict[int, Tensor] = {}

    def kept(gathered: Tensor) -> Tensor:
        return gathered.to("cpu", copy=copy).contiguous() if keep else gathered.new_empty(0)

    def fetch(tensor: Tensor) -> Tensor:
        if id(tensor) not in same:
            same[id(tensor)] = kept(whole(tensor))
        return same[id(tensor)]

    # keep_vars: the parameters themselves, by which tied ones are known.
    of_model = {
        name: fetch(tensor)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.requires_grad or not trained_only
    }
    of_optimizer = {
        f"{name}/{key}": kept(value)
        for name, parameter in model.named_parameters()
        for key, value in whole_state(optimizer, parameter).items()
    }
    return Weights(model=of_model, optimizer=of_optimizer) if keep else Weights(model={}, optimizer={})


def save_checkpoint(
    out_dir: Path,
    *,
    weights: Weights,
    model: PreTrainedModel,
    adapter: Any = None,
    processor: ProcessorMixin,
    state: TrainerState,
    keep_last: int,
    keep_best: str = HELD_OUT_LOSS,
) -> Path:
    """Write `checkpoint-<step>`, of a model with adapters these alone; of older ones the last `keep_last` and the best
    stay."""
    target = out_dir / f"checkpoint-{state.step}"
    with whole_folder(target) as folder:
        if adapter is None:
            _write_model(model, folder, weights.model, torch.float32)
        else:
            lora.save(adapter, folder, weights.model)
        processor.save_pretrained(folder)
        trainer = folder / "trainer"
        trainer.mkdir()
        save_file(weights.optimizer, trainer / "optimizer.safetensors")
        (trainer / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    best = best_checkpoint(out_dir, keep_best)
    for old in checkpoints(out_dir)[:-keep_last]:
        if old != best:
            _remove(old)
    return target


def sweep(out_dir: Path) -> None:
    """Remove what killed processes left of checkpoints; nobody may be writing one."""
    for left in out_dir.glob(f"checkpoint-*{PARTIAL}"):
        shutil.rmtree(left)


def _remove(checkpoint: Path) -> None:
    """Its name goes first: what a kill leaves of the folder must not be taken for a checkpoint."""
    nameless = checkpoint.with_name(f"{checkpoint.name}{PARTIAL}")
    os.replace(checkpoint, nameless)
    shutil.rmtree(nameless)


def best_checkpoint(out_dir: Path, by: str = HELD_OUT_LOSS) -> Path | None:
    """The checkpoint with the lowest held-out loss or the highest accuracy of task `by`, the later one of equals; None
    where it was not measured."""
    sign = 1 if by == HELD_OUT_LOSS else -1
    states = [(read_state(path), path) for path in checkpoints(out_dir)]
    found = [(sign * state.measured[by], -state.step, path) for state, path in states if by in state.measured]
    return min(found)[2] if found else None


@final
class Writer:
    """Runs one job at a time, in the background or at once; a failure is raised by the next call."""

    def __init__(self, *, background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._job: Future[Any] | None = None

    def run(self, job: Callable[[], Any]) -> None:
        """Do the job once the one before is done."""
        self.wait()
        if self._thread is None:
            job()
        else:
            self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Until nothing is being written."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._thread.shutdown()


def save_model(
    target: Path,
    *,
    tensors: dict[str, Tensor],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dtype: str,
    names: Collection[str] = (),
) -> None:
    """Write the final model with weights of `dtype`; the model in memory stays as it is.

    `names`: those of the checkpoint it came from, which it gets back where transformers changes them.
    """
    torch_dtype: torch.dtype = getattr(torch, dtype)
    converted: dict[int, Tensor] = {}  # tied weights stay tied, and are written once
    for tensor in tensors.values():
        dtype_now = torch_dtype if tensor.is_floating_point() else tensor.dtype
        converted.setdefault(id(tensor), tensor.to(dtype_now))
    tensors = {name: converted[id(tensor)] for name, tensor in tensors.items()}
    with whole_folder(target) as folder:
        _write_model(model, folder, tensors, torch_dtype)
        restore_names(folder, set(names))
        processor.save_pretrained(folder)


def save_adapter(
    target: Path, *, tensors: dict[str, Tensor], adapter: Any, processor: ProcessorMixin
) -> None:
    """Write the final adapters."""
    with whole_folder(target) as folder:
        lora.save(adapter, folder, tensors)
        processor.save_pretrained(folder)


def _write_model(
    model: PreTrainedModel, folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Weights and configuration, which says that they are of `dtype`.

    transformers writes the type of the parameters in memory into the model's configuration and saves that. They may be
    of another type, and under FSDP while a step is computed they are for as long as it takes.
    """
    before = model.config.dtype
    model.save_pretrained(folder, state_dict=tensors)
    model.config.dtype = before
    config = copy.deepcopy(model.config)
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
    config.save_pretrained(folder)


def checkpoints(out_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in out_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state of a checkpoint."""
    data = json.loads((checkpoint / "trainer" / "state.json").read_text(encoding="utf-8"))
    own = {"loader": LoaderState(**data["loader"]), "recent_losses": tuple(data["recent_losses"])}
    return TrainerState(**{**data, **own})


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Optimiser state as `gather` named it; raises UserError when a trained parameter is missing."""
    path = checkpoint / "trainer" / "optimizer.safetensors"
    with safe_open(path, "pt") as file:  # one parameter at a time: every process does this
        saved: defaultdict[str, list[str]] = defaultdict(list)
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            saved[key.rpartition("/")[0]].append(key)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if not saved[name]:
                raise explain(
                    what=f"the checkpoint has no optimiser state for {name}",
                    where=str(path),
                    fix="resume with the same parts frozen, or start a new run with model.path",
                )
            state = {key.rpartition("/")[2]: file.get_tensor(key) for key in saved[name]}
            set_state(optimizer, parameter, state)


def refuse_other_run(
    state: TrainerState, config: dict[str, Any], fingerprint: str, may_change: frozenset[str]
) -> None:
    """Raise UserError when a run would be resumed with another configuration or other data."""
    changed = changes(state.config, config, may_change)
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


def changes(before: dict[str, Any], now: dict[str, Any], may_change: frozenset[str]) -> list[str]:
    """`key: 1 -> 2` for every value that differs, but for the keys that may."""
    return [
        difference
        for key in sorted({*before, *now} - may_change)
        for difference in _differences(key, before.get(key), now.get(key))
    ]


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
