"""What a run would take, said before it begins: memory, steps, packing, hours, and how a sample looks to the model.

    stage --sizes on the meta device--> memory of one process
          --some windows of the real data--> rows, fill, samples and operations a step --assumed MFU--> GPU-hours

Nothing is trained and no weights are read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from infinity_mm.data.encode import IGNORE
from infinity_mm.data.loader import EncodedRows
from infinity_mm.data.packing import Packed
from infinity_mm.data.plan import Planner
from infinity_mm.families import INFINITY_MM, family_of
from infinity_mm.families.base import PARTS, Family, part_of
from infinity_mm.model.cross_entropy import CHUNK_LOGITS
from infinity_mm.model.flops import ModelSizes
from infinity_mm.model.load import load_sizes
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.training.config import SftConfig, StartConfig
from infinity_mm.training.curriculum import Stage
from infinity_mm.training.mixing import build_planner
from infinity_mm.training.monitor import BF16_PEAKS, step_flops
from infinity_mm.training.optim import trained_parts
from infinity_mm.training.start import build_mixture, limits_of, start_model

ASSUMED_MFU = 0.35
"""Useful operations over the peak, an assumption; others report 0.3 to 0.45 for models of 7B to 8B."""
NAMED = ("A100", "H100", "H200")
WINDOWS, ROWS = 4, 8
"""So much of the data is looked at: windows for the fill, rows for the operations."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes of one process, in GB."""

    weights: float
    """Float32, all parts, and in bf16 the copies that the products use."""
    gradients: float
    optimizer: float
    activations: float
    """Kept for the backward pass of one micro-batch."""
    loss: float
    """Logits of one chunk, three times."""
    total: float
    sharded_8: float
    """The same when weights, gradients and optimiser are spread over 8 processes."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage, before it runs."""

    name: str
    trained: list[str]
    parameters: dict[str, int]
    """By part of the model."""
    memory_gb: Memory
    samples_per_epoch: int
    fill: float
    """Share of the positions of a row that hold a token."""
    dropped: float
    """Share of the samples that no row takes."""
    measured_samples: int
    """The two figures before and the steps come from so many."""
    steps: int
    samples_per_step: float
    tokens_per_step: float
    tokens: float
    """Of the whole stage, padding left out."""
    flops: float
    """Of the whole stage, forward and backward, padding left out."""
    gpu_hours: dict[str, float]
    """By device, at `ASSUMED_MFU`."""
    preview: list[tuple[str, bool]]
    """A sample as the model reads it: pieces of text, and whether they are learned."""


def print_plan(stages: Sequence[Stage], *, only: str | None = None, as_json: bool = False) -> None:
    """All stages, or one."""
    chosen = [stage for stage in stages if only in (None, stage.name)]
    plans = plan_stages(stages, [stage.name for stage in chosen])
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps({"assumed_mfu": ASSUMED_MFU, "stages": [asdict(plan) for plan in plans]}, indent=1))
        return
    for plan in plans:
        console.print("\n".join(_lines(plan)))
    if len(plans) > 1:
        hours = ", ".join(f"{name} {sum(p.gpu_hours[name] for p in plans):.1f}" for name in NAMED)
        console.print(f"\nall stages: {sum(p.tokens for p in plans):.3g} tokens, GPU-hours: {hours}")


def plan_stages(stages: Sequence[Stage], names: Sequence[str]) -> list[StagePlan]:
    """Stages begin with the model of the first one, whose sizes do not change; its images may be cut otherwise."""
    family, model, processor = _sizes_only(stages[0].config)
    plans: list[StagePlan] = []
    for stage in stages:
        family.limit(model, processor, limits_of(stage.config.model))
        if stage.name in names:
            plans.append(_plan(stage, family, model, processor))
    return plans


def _sizes_only(config: SftConfig) -> tuple[Family, PreTrainedModel, Any]:
    """What a run starts from; a checkpoint's weights are not read."""
    start: StartConfig = config.model
    if start.path is None:
        started = start_model(start, build_mixture(config.data))
        return started.family, started.model, started.processor
    folder = Path(start.path)
    family = family_of(folder, convert=start.convert)
    if family is INFINITY_MM:
        own_config, processor = load_sizes(folder)
        with torch.device("meta"):
            return family, InfinityMMForConditionalGeneration(own_config), processor
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    return family, model, AutoProcessor.from_pretrained(folder)


def _plan(stage: Stage, family: Family, model: PreTrainedModel, processor: Any) -> StagePlan:
    config = stage.config
    encoder, sizes, trained = family.encoder(processor), family.sizes(model.config), trained_parts(config)
    one_step = SftConfig(**{**_fields(config), "steps": 1, "epochs": None, "mix_by_phase": ()})
    mixture = build_mixture(config.data, temperature=config.mix_temperature)
    planner, _ = build_planner(one_step, mixture, encoder, family.vision_cost(model.config), ())
    rows, num_samples, num_dropped = _some_rows(planner)
    used = sum(len(row) for row in rows)
    tokens_per_row = sum(sample.tokens for row in rows for sample in row) / len(rows)
    dataset = EncodedRows(planner.phases, encoder, config.row_tokens)
    batches = [dataset[[row]][0] for row in rows[:: max(1, len(rows) // ROWS)][:ROWS]]
    flops_per_row = sum(step_flops(sizes, [batch], trained)[0] for batch in batches) / len(batches)
    per_epoch = len(planner.phases[0].mixture)
    steps = config.steps
    if steps is None:
        assert config.epochs is not None
        steps = max(1, round(config.epochs * per_epoch * len(rows) / num_samples / config.global_batch_rows))
    per_step = config.global_batch_rows
    parameters = _parameters(family, model)
    return StagePlan(
        name=stage.name,
        trained=trained,
        parameters=parameters,
        memory_gb=estimate_memory(config, sizes, parameters, batches),
        samples_per_epoch=per_epoch,
        fill=tokens_per_row / config.row_tokens,
        dropped=num_dropped / num_samples,
        measured_samples=num_samples,
        steps=steps,
        samples_per_step=used / len(rows) * per_step,
        tokens_per_step=tokens_per_row * per_step,
        tokens=tokens_per_row * per_step * steps,
        flops=flops_per_row * per_step * steps,
        gpu_hours={
            name: flops_per_row * per_step * steps / (ASSUMED_MFU * BF16_PEAKS[name]) / 3600 for name in NAMED
        },
        preview=preview(
            batches[0],
            processor.tokenizer,
            processor.tokenizer.convert_tokens_to_ids(processor.image_token),
        ),
    )


def _fields(config: SftConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _some_rows(planner: Planner) -> tuple[list[Any], int, int]:
    """(rows, samples, samples that are in none) of windows spread evenly over the first epoch."""
    number = planner.windows_per_epoch(0)
    windows = [planner.window(0, 0, place) for place in range(0, number, max(1, number // WINDOWS))]
    windows = list(itertools.islice(windows, WINDOWS))
    rows = [row for window in windows for row in window.rows]
    return rows, sum(len(w.opened) for w in windows), sum(len(w.dropped) for w in windows)


def _parameters(family: Family, model: PreTrainedModel) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name, family.parts)] += parameter.numel()
    return counts


def estimate_memory(
    config: SftConfig, sizes: ModelSizes, parameters: dict[str, int], batches: Sequence[Packed]
) -> Memory:
    """Weights, gradients and optimiser exactly; activations by what one layer keeps for each of its positions."""
    all_parts = sum(parameters.values())
    trained = sum(parameters[part] for part in trained_parts(config))
    weights = (6 if config.precision == "bf16" else 4) * all_parts
    moments = (4 if config.optimizer == "muon" else 8) * trained
    positions = config.micro_batch_rows * config.row_tokens
    patches = config.micro_batch_rows * max(_num_patches(sizes, batch) for batch in batches)
    labels = config.micro_batch_rows * max(batch.num_labels for batch in batches)
    activations = kept_bytes(config, sizes, positions=positions, patches=patches)
    loss = 3 * 4 * min(labels * sizes.vocab, CHUNK_LOGITS)
    gb = 1e-9
    states = weights + 4 * trained + moments
    return Memory(
        weights=weights * gb,
        gradients=4 * trained * gb,
        optimizer=moments * gb,
        activations=activations * gb,
        loss=loss * gb,
        total=(states + activations + loss) * gb,
        sharded_8=(states / 8 + activations + loss) * gb,
    )


def kept_bytes(config: SftConfig, sizes: ModelSizes, *, positions: int, patches: int) -> float:
    """Bytes kept for the backward pass: two norms with their inputs, queries, keys, values, attention's output, and
    what the MLP makes; with checkpointing only the input of every layer, and one layer whole."""
    width = 2 if config.precision == "bf16" else 4
    text, vision = sizes.text_hidden, sizes.vision.hidden
    # Norms are computed in float32 whatever the products are.
    of_text = 4 * 4 * text + width * (
        4 * text + 2 * sizes.text_query + 2 * sizes.text_key_value + 4 * sizes.text_mlp
    )
    of_patch = 4 * 2 * vision + width * (7 * vision + sizes.vision.mlp_matrices * sizes.vision.mlp)
    if config.gradient_checkpointing:
        text_total = positions * (4 * text * sizes.text_layers + of_text)
        vision_total = patches * (4 * vision * sizes.vision.layers + of_patch)
    else:
        text_total = positions * of_text * sizes.text_layers
        vision_total = patches * of_patch * sizes.vision.layers
    frozen_before_all = "vision_tower" not in trained_parts(config)
    return text_total + (0 if frozen_before_all else vision_total)


def _num_patches(sizes: ModelSizes, batch: Packed) -> int:
    shapes = [] if batch.view_shapes is None else batch.view_shapes[:, 1:3].tolist()
    return sum(sizes.vision.num_patches(rows, columns) for rows, columns in shapes)


def preview(batch: Packed, tokenizer: Any, image_id: int) -> list[tuple[str, bool]]:
    """The first sample of a row: text as its tokens spell it, runs of image tokens counted."""
    first = batch.sample_ids[0] == 1
    ids, labels = batch.input_ids[0][first].tolist(), batch.labels[0][first].tolist()
    pieces: list[tuple[str, bool]] = []
    kinds = [(label != IGNORE, id_ == image_id) for id_, label in zip(ids, labels)]
    for (learned, is_image), run in itertools.groupby(range(len(ids)), key=lambda i: kinds[i]):
        own = [ids[i] for i in run]
        text = f"<{len(own)} image tokens>" if is_image else str(tokenizer.decode(own))
        pieces.append((text, learned))
    return pieces


def _lines(plan: StagePlan) -> list[str]:
    memory, parameters = plan.memory_gb, plan.parameters
    shown = "".join(
        f"[black on green]{escape(t)}[/]" if learned else escape(t) for t, learned in plan.preview
    )
    hours = ", ".join(f"{name} {value:.3g}" for name, value in plan.gpu_hours.items())
    return [
        f"\n[bold]{plan.name or 'run'}[/bold]",
        "parameters   "
        + ", ".join(
            f"{part} {count / 1e6:.1f}M{'' if part in plan.trained else ' (frozen)'}"
            for part, count in parameters.items()
        ),
        f"memory       {memory.total:.2f} GB a process: weights {memory.weights:.2f}, gradients "
        f"{memory.gradients:.2f}, optimiser {memory.optimizer:.2f}, activations about {memory.activations:.2f}, "
        f"loss {memory.loss:.2f}; "
        f"sharded over 8: {memory.sharded_8:.2f}",
        f"data         {plan.samples_per_epoch} samples an epoch, rows {plan.fill:.1%} full, {plan.dropped:.2%} "
        f"dropped (measured on {plan.measured_samples} samples)",
        f"steps        {plan.steps}, each about {plan.samples_per_step:.0f} samples and "
        f"{plan.tokens_per_step:.0f} tokens; {plan.tokens:.3g} tokens in all",
        f"operations   {plan.flops:.3g}; GPU-hours at an assumed MFU of {ASSUMED_MFU:.0%}: {hours}",
        "a sample     (green is learned)",
        shown,
    ]
