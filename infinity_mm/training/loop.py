"""The training loop, on accelerate.

StepBatch --count labels (all processes)--> micro-steps: loss, backward --guard--> clip, AdamW --> metrics, checkpoint
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
from torch import Tensor, nn

from infinity_mm.data.loader import RowLoader, StepBatch
from infinity_mm.data.packing import Packed
from infinity_mm.errors import explain
from infinity_mm.model.flops import ModelSizes
from infinity_mm.record import digest, seed_for
from infinity_mm.training.checkpoint import TrainerState
from infinity_mm.training.config import SftConfig, SpikeConfig
from infinity_mm.training.guard import BadStep, Guard
from infinity_mm.training.loss import count_labels, local_loss, total_weight
from infinity_mm.training.measure import Measured
from infinity_mm.training.metrics import StepMetrics
from infinity_mm.training.monitor import (
    LossTally,
    clip,
    everywhere,
    gradient_norms,
    mean_losses,
    memory_gb,
    samples_of,
    step_flops,
)
from infinity_mm.training.noise import EmbeddingNoise
from infinity_mm.training.optim import set_lr, trained_parts
from infinity_mm.training.schedule import lr_factor
from infinity_mm.training.sharding import is_sharded
from infinity_mm.training.zero3 import is_zero3


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
    """What the loop calls on every process; some do their work on the main one only."""

    log: Callable[[StepMetrics], None]
    fates: Callable[[StepBatch, BadStep | None], None]
    """(step, why the optimiser left it out, if it did): what became of its samples."""
    save: Callable[[TrainerState], None]
    skipped: Callable[[int, str, list[str]], None]
    """(step, problem, ids of its samples): the optimiser left this step out."""
    measure: Callable[[int], Measured]
    """(finished steps): what is due after them; must leave everything as it is."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What changes while learning."""

    accelerator: Accelerator
    model: nn.Module
    """As the processes share it."""
    backward: Callable[[Tensor], object]
    """Adds a loss's gradients to those of the step; accelerate's, or that of DeepSpeed's engine."""
    optimizer: torch.optim.Optimizer
    noise: EmbeddingNoise
    guard: Guard
    sizes: ModelSizes | None
    """For counting operations; None where there is no formula for the model."""
    peak_flops: float | None
    """Operations a second of all devices at best."""


def run_steps(
    learner: Learner, loader: RowLoader, state: TrainerState, config: SftConfig, hooks: Hooks, stop: Stop
) -> TrainerState:
    """Train until `state.total_steps` or a request to stop; returns where the run stands."""
    accelerator, optimizer, guard = learner.accelerator, learner.optimizer, learner.guard
    learner.model.train()
    batches = iter(loader)
    while state.step < state.total_steps:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        *sums, weight = _total(accelerator, _counts(batch, stop, config, learner.sizes))
        factor = lr_factor(config.schedule, state.step, state.total_steps)
        set_lr(optimizer, factor)
        _seed(config.seed, state.step, accelerator)
        loss, tally = _backward(learner, batch.micro_batches, weight, config)
        norms = gradient_norms(optimizer)
        norm = math.hypot(*norms.values())
        own = samples_of(batch.micro_batches), tally.totals(), waited, memory_gb(accelerator.device)
        own_ids, totals, waits, memories = zip(*everywhere(accelerator, own), strict=True)
        ids = sorted(id_ for of_process in own_ids for id_ in of_process)
        by_label = mean_losses(totals)
        step, problem, bad = state.step + 1, guard.problem(loss, norm), None
        if problem is None:
            clip(optimizer, norms, config.grad_clip)
            optimizer.step()
            guard.passed(step, loss)
        else:
            losses = everywhere(accelerator, tally.by_sample())
            bad = BadStep(problem=problem, losses={key: loss for own in losses for key, loss in own.items()})
        hooks.fates(batch, bad)
        if problem is not None:
            if guard.must_stop():
                raise _bad_step(step, problem, ids, config.spike)
            hooks.skipped(step, problem, ids)
        optimizer.zero_grad(set_to_none=True)
        labels, samples, images, tokens, asked, useful, padding = map(int, sums)
        seconds = time.perf_counter() - start
        state = replace(
            state,
            step=step,
            loader=batch.next,
            samples=state.samples + samples,
            tokens=state.tokens + tokens,
            images=state.images + images,
            dropped=state.dropped + len(batch.dropped),
            skipped=state.skipped + (samples if problem else 0),
            recent_losses=guard.recent_losses,
        )
        measured = hooks.measure(step)
        state = replace(state, measured=measured.scores())
        speed = useful / seconds
        hooks.log(
            StepMetrics(
                step=step,
                loss=loss,
                grad_norm=norm,
                lr=factor,
                rows=config.global_batch_rows,
                samples=samples,
                samples_digest=digest(*ids)[:16],
                images=images,
                tokens=tokens,
                labels=labels,
                fill=tokens / (config.global_batch_rows * config.row_tokens),
                wait_s=max(waits),
                step_s=seconds,
                tokens_per_s=tokens / seconds,
                images_per_s=images / seconds,
                loss_by_domain=by_label["domain"],
                loss_by_source=by_label["source"],
                grad_norm_by_part=norms,
                memory_gb={kind: max(memory[kind] for memory in memories) for kind in memories[0]},
                flops_per_s=speed if learner.sizes else None,
                padding_flops_per_s=padding / seconds if learner.sizes else None,
                mfu=speed / learner.peak_flops if learner.sizes and learner.peak_flops else None,
                problem=problem,
                held_out_loss=measured.held_out_loss,
                tasks=measured.tasks,
            )
        )
        if asked or step % config.save_every_steps == 0 or step == state.total_steps:
            hooks.save(state)
        if asked:
            break
    return state


def _counts(batch: StepBatch, stop: Stop, config: SftConfig, sizes: ModelSizes | None) -> list[float]:
    """This process's (supervised tokens, samples, images, tokens, request to stop, useful operations, operations on
    padding, weight of the loss)."""
    micro = batch.micro_batches
    flops = (0, 0) if sizes is None else step_flops(sizes, micro, trained_parts(config))
    return [
        count_labels(micro),
        sum(len(ids) for b in micro for ids in b.ids),
        sum(b.num_images for b in micro),
        sum(b.num_tokens for b in micro),
        int(stop.asked.is_set()),
        *flops,
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
    learner: Learner, batches: Sequence[Packed], weight: float, config: SftConfig
) -> tuple[float, LossTally]:
    """Gradients of the step's mean loss, whose weights sum to `weight`; that loss, summed over processes, and where
    it came from in this one."""
    accelerator, model = learner.accelerator, learner.model
    total, tally = torch.zeros((), device=accelerator.device), LossTally()
    for number, batch in enumerate(batches, 1):
        # Sharded gradients are summed at once: whole ones of all parameters would not fit.
        shared_now = number == len(batches) or is_sharded() or is_zero3()
        with nullcontext() if shared_now else accelerator.no_sync(model):
            batch = batch.to(accelerator.device)
            learner.noise.begin(batch.sample_ids)
            loss, token_losses_M = local_loss(
                model, batch, total_weight=weight or 1.0, weighting=config.loss_weighting
            )
            learner.backward(loss * accelerator.num_processes)
        total += loss.detach()
        tally.add(batch, token_losses_M)
    summed = total if accelerator.num_processes == 1 else accelerator.reduce(total, reduction="sum")
    assert isinstance(summed, Tensor)
    return float(summed), tally


def _seed(seed: int, step: int, accelerator: Accelerator) -> None:
    """Random numbers depend on seed, step and process: there is no generator state to save."""
    torch.manual_seed(seed_for(seed, "training-step", f"{step}/{accelerator.process_index}"))


def _bad_step(step: int, problem: str, ids: Sequence[str], spike: SpikeConfig) -> ValueError:
    """The error that stops the run before the optimiser is touched."""
    listed = "they are in quarantine.jsonl: a new run that is given this list leaves them out"
    return explain(
        what=f"step {step}: {problem}; the optimiser was not stepped",
        where="samples of the step: " + ", ".join(ids),
        fix=f"look at these samples{'; ' + listed if spike.quarantine else ''}; lower lr or grad_clip, or use "
        "precision: fp32; spike.action: skip or rewind goes on without them; the last checkpoint is intact",
    )
