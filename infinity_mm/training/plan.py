"""What a run would take, said before it begins: memory, steps, packing, hours, and how a sample looks to the model.

    stage --sizes on the meta device--> memory of one process
          --some windows of the real data--> rows, fill, samples and operations a step --assumed MFU--> GPU-hours

Nothing is trained and no weights are read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from infinity_mm.data.encode import IGNORE, Encoder, RowEncoder
from infinity_mm.data.loader import EncodedRows
from infinity_mm.data.packing import Packed
from infinity_mm.data.plan import Planner, Window
from infinity_mm.errors import UserError
from infinity_mm.families import INFINITY_MM, family_of
from infinity_mm.families.base import Family
from infinity_mm.model.load import load_sizes
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.training.config import SftConfig, StartConfig
from infinity_mm.training.curriculum import Stage
from infinity_mm.training.footprint import Memory, count_learned, estimate_memory
from infinity_mm.training.mixing import build_planner, indexed, read_listed
from infinity_mm.training.monitor import BF16_PEAKS, step_flops
from infinity_mm.training.start import build_mixture, limits_of, start_model
from infinity_mm.vision.slicing import area_used, aspect_error, plan_slices

ASSUMED_MFU = 0.35
"""Useful operations over the peak, an assumption; others report 0.3 to 0.45 for models of 7B to 8B."""
NAMED = ("A100", "H100", "H200")
WINDOWS, ROWS, IMAGES = 4, 8, 200
"""So much of the data of every phase is looked at: windows for the fill, rows for the operations, sizes of images."""


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """What slices whose sides are multiples of whole tokens do to images (`views: uhd`)."""

    num_images: int
    """So many were looked at."""
    area_used: float
    """Share of the views' area budget that is filled, mean."""
    least_area_used: float
    aspect_error: float
    """Factor by which the worst view of an image is stretched, 1 is exact; mean."""
    worst_aspect_error: float


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage, before it runs."""

    name: str
    trained: list[str]
    parameters: dict[str, int]
    """By part of the model, without adapters."""
    trained_parameters: dict[str, int]
    """By part: what gets a gradient, adapters included."""
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
    flops: float | None
    """Of the whole stage, forward and backward, padding left out; None for a model without a formula."""
    gpu_hours: dict[str, float]
    """By device, at `ASSUMED_MFU`; empty for a model without a formula."""
    slicing: Slicing | None
    """None for models that cut images otherwise, and where no image was looked at."""
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
        console.print(f"\nall stages: {sum(p.tokens for p in plans):.3g} tokens{_hours_of_all(plans)}")


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


@dataclass(frozen=True, kw_only=True)
class _Phase:
    """What was measured of one phase of the mixture."""

    steps: int
    windows: list[Window]
    batches: list[Packed]
    flops_per_row: float

    @property
    def rows(self) -> list[Any]:
        return [row for window in self.windows for row in window.rows]

    def per_row(self, count: Callable[[Any], int]) -> float:
        """Mean over rows of the sum over a row's samples."""
        return sum(count(sample) for row in self.rows for sample in row) / len(self.rows)


def _plan(stage: Stage, family: Family, model: PreTrainedModel, processor: Any) -> StagePlan:
    config = stage.config
    encoder, learned = family.encoder(processor), count_learned(family, model, config)
    planner = _planner(config, family, model, encoder)
    try:
        sizes = family.sizes(model.config)
    except UserError:  # trained all the same
        sizes = None
    whole = {part for part, count in learned.trained.items() if count and part not in learned.adapters}
    first = _windows(planner, 0)
    per_epoch = len(planner.phases[0].mixture)
    steps = config.steps
    if steps is None:
        assert config.epochs is not None
        rows_per_sample = sum(len(w.rows) for w in first) / sum(len(w.opened) for w in first)
        steps = max(1, round(config.epochs * per_epoch * rows_per_sample / config.global_batch_rows))
    dataset = EncodedRows(planner.phases, encoder, config.row_tokens)
    starts = [min(phase.from_step, steps) for phase in planner.phases]
    phases: list[_Phase] = []
    for number, (start, end) in enumerate(itertools.pairwise([*starts, steps])):
        windows = first if number == 0 else _windows(planner, number)
        rows = [row for window in windows for row in window.rows]
        batches = [dataset[[row]][0] for row in rows[:: max(1, len(rows) // ROWS)][:ROWS]]
        flops = 0 if sizes is None else step_flops(sizes, batches, whole, learned.adapters)[0]
        phases.append(
            _Phase(steps=end - start, windows=windows, batches=batches, flops_per_row=flops / len(batches))
        )

    def mean(value: Callable[[_Phase], float]) -> float:
        return sum(phase.steps * value(phase) for phase in phases) / steps

    batches = [batch for phase in phases for batch in phase.batches]
    per_step = config.global_batch_rows
    tokens_per_row = mean(lambda phase: phase.per_row(lambda sample: sample.tokens))
    flops = None if sizes is None else mean(lambda phase: phase.flops_per_row) * per_step * steps
    vocab = model.config.get_text_config().vocab_size
    return StagePlan(
        name=stage.name,
        trained=[part for part, count in learned.trained.items() if count],
        parameters=learned.parameters,
        trained_parameters=learned.trained,
        memory_gb=estimate_memory(config, sizes, vocab, learned, batches),
        samples_per_epoch=per_epoch,
        fill=tokens_per_row / config.row_tokens,
        dropped=mean(
            lambda phase: (
                sum(len(w.dropped) for w in phase.windows) / sum(len(w.opened) for w in phase.windows)
            )
        ),
        measured_samples=sum(len(window.opened) for phase in phases for window in phase.windows),
        steps=steps,
        samples_per_step=mean(lambda phase: phase.per_row(lambda _: 1)) * per_step,
        tokens_per_step=tokens_per_row * per_step,
        tokens=tokens_per_row * per_step * steps,
        flops=flops,
        gpu_hours={}
        if flops is None
        else {name: flops / (ASSUMED_MFU * BF16_PEAKS[name]) / 3600 for name in NAMED},
        slicing=_slicing(planner, encoder, [row for phase in phases for row in phase.rows]),
        preview=preview(
            batches[0],
            processor.tokenizer,
            processor.tokenizer.convert_tokens_to_ids(processor.image_token),
        ),
    )


def _planner(config: SftConfig, family: Family, model: PreTrainedModel, encoder: RowEncoder) -> Planner:
    """The run's own; but rows are not counted, and all samples are measured only where their domains are asked for."""
    if config.steps is None:
        config = replace(config, steps=1, epochs=None)
    mixture = build_mixture(config.data, temperature=config.mix_temperature)
    if any(source.domains for source in config.data):
        mixture = indexed(config, mixture, encoder)
    cost = family.vision_cost(model.config)
    planner, _ = build_planner(config, mixture, encoder, cost, read_listed(config))
    return planner


def _windows(planner: Planner, phase: int) -> list[Window]:
    """Some, spread evenly over the first epoch of a phase."""
    number = planner.windows_per_epoch(phase)
    places = range(0, number, max(1, number // WINDOWS))
    return [planner.window(phase, 0, place) for place in places[:WINDOWS]]


def _slicing(planner: Planner, encoder: RowEncoder, rows: Sequence[Any]) -> Slicing | None:
    """What becomes of the images of some samples, spread evenly over the rows."""
    if not isinstance(encoder, Encoder) or encoder.view_config.kind != "uhd":
        return None
    config = encoder.view_config
    with_images = [sample for row in rows for sample in row if sample.vision]
    plans = [
        plan_slices(width, height, config)
        for sample in with_images[:: max(1, len(with_images) // IMAGES)][:IMAGES]
        for width, height in planner.phases[sample.key.phase].mixture.outline(0, sample.key.index).image_sizes
    ]
    if not plans:
        return None
    areas = [area_used(plan, config) for plan in plans]
    errors = [aspect_error(plan) for plan in plans]
    return Slicing(
        num_images=len(plans),
        area_used=sum(areas) / len(areas),
        least_area_used=min(areas),
        aspect_error=sum(errors) / len(errors),
        worst_aspect_error=max(errors),
    )


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
    memory = plan.memory_gb
    shown = "".join(
        f"[black on green]{escape(t)}[/]" if learned else escape(t) for t, learned in plan.preview
    )
    activations = "unknown" if memory.activations is None else f"about {memory.activations:.2f}"
    operations = "no formula for this language model"
    if plan.flops is not None:
        hours = ", ".join(f"{name} {value:.3g}" for name, value in plan.gpu_hours.items())
        operations = f"{plan.flops:.3g}; GPU-hours at an assumed MFU of {ASSUMED_MFU:.0%}: {hours}"
    lines = [
        f"\n[bold]{plan.name or 'run'}[/bold]",
        "parameters   " + ", ".join(_part_line(plan, part) for part in plan.parameters),
        f"memory       {memory.total:.2f} GB a process: weights {memory.weights:.2f}, gradients "
        f"{memory.gradients:.2f}, optimiser {memory.optimizer:.2f}, activations {activations}, "
        f"loss {memory.loss:.2f}; "
        f"sharded over 8: {memory.sharded_8:.2f}",
        f"data         {plan.samples_per_epoch} samples an epoch, rows {plan.fill:.1%} full, {plan.dropped:.2%} "
        f"dropped (measured on {plan.measured_samples} samples)",
        f"steps        {plan.steps}, each about {plan.samples_per_step:.0f} samples and "
        f"{plan.tokens_per_step:.0f} tokens; {plan.tokens:.3g} tokens in all",
        f"operations   {operations}",
        "a sample     (green is learned)",
        shown,
    ]
    if memory.host_rewind:
        lines.insert(
            3, f"host memory  {memory.host_rewind:.2f} GB a process for rewind; sharded over 8: an eighth"
        )
    if (slicing := plan.slicing) is not None:
        lines.insert(
            -3,
            f"slices       {slicing.area_used:.1%} of the views' area used (least {slicing.least_area_used:.1%}), "
            f"stretched by {slicing.aspect_error:.3f} (at most {slicing.worst_aspect_error:.3f}), measured on "
            f"{slicing.num_images} images",
        )
    return lines


def _part_line(plan: StagePlan, part: str) -> str:
    count, trained = plan.parameters[part], plan.trained_parameters[part]
    learns = "" if trained == count else f" ({trained / 1e6:.1f}M learn)" if trained else " (frozen)"
    return f"{part} {count / 1e6:.1f}M{learns}"


def _hours_of_all(plans: Sequence[StagePlan]) -> str:
    if not all(plan.gpu_hours for plan in plans):
        return ""
    hours = ", ".join(f"{name} {sum(plan.gpu_hours[name] for plan in plans):.1f}" for name in NAMED)
    return f", GPU-hours: {hours}"
