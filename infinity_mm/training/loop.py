"""The training loop, on accelerate.

StepBatch --count labels (all processes)--> micro-steps: loss, backward --> clip --> AdamW --> metrics, checkpoint
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from infinity_mm.data.loader import RowLoader, StepBatch
from infinity_mm.data.packing import Packed
from infinity_mm.errors import explain
from infinity_mm.record import seed_for
from infinity_mm.training.checkpoint import TrainerState
from infinity_mm.training.config import SftConfig
from infinity_mm.training.loss import count_labels, local_loss, total_weight
from infinity_mm.training.metrics import StepMetrics
from infinity_mm.training.optim import set_lr
from infinity_mm.training.schedule import lr_factor


@dataclass
class Stop:
    """Whether somebody asked the run to end early."""

    asked: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Turn SIGTERM into a request; elsewhere than in the main thread Python cannot, and nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self.asked.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls; the main process writes, the others pass empty functions."""

    log: Callable[[StepMetrics], None]
    drops: Callable[[StepBatch], None]
    save: Callable[[TrainerState], None]


def run_steps(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: RowLoader,
    state: TrainerState,
    config: SftConfig,
    hooks: Hooks,
    stop: Stop,
) -> TrainerState:
    """Train until `state.total_steps` or a request to stop; returns where the run stands."""
    model.train()
    batches = iter(loader)
    while state.step < state.total_steps:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        *sums, weight = _total(accelerator, _counts(batch, stop, config))
        factor = lr_factor(config.schedule, state.step, state.total_steps)
        set_lr(optimizer, factor)
        _seed(config.seed, state.step, accelerator)
        loss = _backward(accelerator, model, batch.micro_batches, weight, config)
        norm = _clip(accelerator, model, config.grad_clip)
        if not math.isfinite(loss + norm):
            raise _not_finite(accelerator, state.step, loss, norm, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        hooks.drops(batch)
        labels, samples, images, tokens, asked = map(int, sums)
        state = replace(
            state,
            step=state.step + 1,
            loader=batch.next,
            samples=state.samples + samples,
            tokens=state.tokens + tokens,
            images=state.images + images,
            dropped=state.dropped + len(batch.dropped),
        )
        hooks.log(
            StepMetrics(
                step=state.step,
                loss=loss,
                grad_norm=norm,
                lr=factor,
                rows=config.global_batch_rows,
                samples=samples,
                images=images,
                tokens=tokens,
                labels=labels,
                fill=tokens / (config.global_batch_rows * config.row_tokens),
                wait_s=waited,
                step_s=time.perf_counter() - start,
            )
        )
        if asked or state.step % config.save_every_steps == 0 or state.step == state.total_steps:
            hooks.save(state)
        if asked:
            break
    return state


def _counts(batch: StepBatch, stop: Stop, config: SftConfig) -> list[float]:
    """This process's (supervised tokens, samples, images, tokens, request to stop, weight of the loss)."""
    micro = batch.micro_batches
    return [
        count_labels(micro),
        sum(len(ids) for b in micro for ids in b.ids),
        sum(b.num_images for b in micro),
        sum(b.num_tokens for b in micro),
        int(stop.asked.is_set()),
        total_weight(micro, config.loss_weighting),
    ]


def _total(accelerator: Accelerator, counts: list[float]) -> list[float]:
    """Sums over all processes, so that all of them also stop after the same step."""
    if accelerator.num_processes == 1:
        return counts
    summed = accelerator.reduce(
        torch.tensor(counts, dtype=torch.float64, device=accelerator.device), reduction="sum"
    )
    assert isinstance(summed, Tensor)
    return summed.tolist()


def _backward(
    accelerator: Accelerator, model: nn.Module, batches: Sequence[Packed], weight: float, config: SftConfig
) -> float:
    """Gradients of the step's mean loss, whose weights sum to `weight`; returns that loss, summed over processes."""
    total = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches, 1):
        last = number == len(batches)
        with nullcontext() if last else accelerator.no_sync(model):
            loss = local_loss(
                model,
                batch.to(accelerator.device),
                total_weight=weight,
                weighting=config.loss_weighting,
            )
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    summed = total if accelerator.num_processes == 1 else accelerator.reduce(total, reduction="sum")
    assert isinstance(summed, Tensor)
    return float(summed)


def _clip(accelerator: Accelerator, model: nn.Module, grad_clip: float) -> float:
    """Clip and return the gradient's norm before it."""
    norm = accelerator.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    return float(norm) if norm is not None else 0.0


def _seed(seed: int, step: int, accelerator: Accelerator) -> None:
    """Random numbers depend on seed, step and process: there is no generator state to save."""
    torch.manual_seed(seed_for(seed, "training-step", f"{step}/{accelerator.process_index}"))


def _not_finite(
    accelerator: Accelerator, step: int, loss: float, norm: float, batch: StepBatch
) -> ValueError:
    """The error that stops the run before the optimiser is touched."""
    own = [id_ for micro in batch.micro_batches for ids in micro.ids for id_ in ids]
    ids = own if accelerator.num_processes == 1 else gather_object(own)
    return explain(
        what=f"step {step + 1}: loss {loss}, gradient norm {norm}; the optimiser was not stepped",
        where="samples of the step: " + ", ".join(ids),
        fix="look at these samples; lower lr or grad_clip, or use precision: fp32; the last checkpoint is intact",
    )
