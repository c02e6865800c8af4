"""How the nano vision tower is trained before any language: it names what is at every patch.

    training scene --render, slice--> views --VisionTower--> patch features --one linear layer--> class per head
                   \\--patch_labels----------------------------------------> right class per head ----> loss

It stands where SigLIP stands for a large model: a tower that sees before the language model is asked. A caption tells
a tower in a hundred words what labels tell it at every patch, so it learns to read in a fraction of the images.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from infinity_mm.errors import explain
from infinity_mm.model.attention import SDPA_FLOAT32
from infinity_mm.model.build import NANO, ModelSpec, build_vision_config
from infinity_mm.model.connectors.shape import connector_shape
from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.training.config import ScheduleConfig
from infinity_mm.training.muon import Muon
from infinity_mm.training.schedule import lr_factor
from infinity_mm.training.start import new_accelerator
from infinity_mm.vision.slicing import plan_slices
from infinity_mm.windtunnel import world
from infinity_mm.windtunnel.patch_labels import HEADS, NOTHING, UNKNOWN, patch_labels

_BACKGROUND_WEIGHT = 0.1
"""Weight of patches that show nothing: most do, and they are easy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerTraining:
    """One training run."""

    output_dir: str
    """Folder to write `config.json`, `model.safetensors`, `metrics.json` and `training.jsonl` to."""
    shape: ModelSpec = NANO
    """Sizes; only those of the vision tower and of the slices are read."""
    world_seed: int = 5
    steps: int = 1500
    batch_images: int = 32
    """Images of one step, over all processes."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_steps=50))
    num_held_out_scenes: int = 400
    """Held-out scenes that the figures are measured on."""
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0
    threads: int | None = None
    """Threads of one process; None leaves torch's choice."""
    log_every_steps: int = 20

    def __post_init__(self) -> None:
        if self.batch_images < 1 or self.steps < 1:
            raise explain(
                what=f"batch_images={self.batch_images}, steps={self.steps}",
                where="configuration of train/tower.py",
                fix="give at least 1",
            )


@dataclass(frozen=True, kw_only=True)
class Views:
    """Some images as the tower reads them, with targets."""

    pixel_values: Tensor
    """(patches, values)"""
    view_shapes: Tensor
    """(views, 3)"""
    targets: dict[str, Tensor]
    """Head -> (patches,)"""

    @classmethod
    def draw(
        cls, processor: InfinityMMImageProcessor, *, world_seed: int, indices: range, split: world.Split
    ) -> Views:
        """Render scenes by number."""
        scenes = [world.sample_scene(world_seed=world_seed, index=i, split=split) for i in indices]
        inputs = processor.preprocess([world.render(scene) for scene in scenes], return_tensors="pt")
        plans = [plan_slices(scene.width, scene.height, processor.slice_config()) for scene in scenes]
        labels = [patch_labels(scene, plan) for scene, plan in zip(scenes, plans, strict=True)]
        targets = {head: torch.cat([torch.from_numpy(one[head]) for one in labels]) for head in HEADS}
        return cls(pixel_values=inputs["pixel_values"], view_shapes=inputs["view_shapes"], targets=targets)


class Pretraining(nn.Module):
    """A tower and one linear layer for all heads; only the tower is kept."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.sizes = [len(names) + 1 for names in HEADS.values()]
        self.heads = nn.Linear(tower.config.hidden_size, sum(self.sizes))

    def forward(self, pixel_values: Tensor, view_shapes: Tensor) -> dict[str, Tensor]:
        """Head -> scores, (patches, classes)."""
        scores = self.heads(self.tower(pixel_values, view_shapes))
        return dict(zip(HEADS, scores.split(self.sizes, dim=-1), strict=True))


def head_losses(scores: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Head -> mean cross entropy; patches that show nothing count little."""
    losses: dict[str, Tensor] = {}
    for head, of_head in scores.items():
        weight = torch.ones(of_head.shape[-1], device=of_head.device)
        if head not in ("x", "y"):
            weight[NOTHING] = _BACKGROUND_WEIGHT
        losses[head] = functional.cross_entropy(of_head.float(), targets[head], weight, ignore_index=UNKNOWN)
    return losses


def train_tower(config: TowerTraining) -> dict[str, Any] | None:
    """Train, measure and write the tower; returns the figures on the main process, None on the others."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    accelerator = new_accelerator(config.precision)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if config.batch_images % world_size:
        raise explain(
            what=f"batch_images={config.batch_images} does not divide by {world_size} processes",
            where="train/tower.py",
            fix="choose a multiple of the number of processes",
        )
    tower = VisionTower(build_vision_config(config.shape))
    if accelerator.device.type == "cpu" and config.precision == "bf16":
        tower.set_attn_implementation(SDPA_FLOAT32)
    model = Pretraining(tower)
    optimizer = _optimizer(model, config)
    wrapped = accelerator.prepare(model)
    processor = _processor(config.shape)
    own = config.batch_images // world_size
    if accelerator.is_main_process:
        _log_file(config).unlink(missing_ok=True)
    started = time.monotonic()
    for step in range(config.steps):
        first = step * config.batch_images + rank * own
        views = Views.draw(
            processor, world_seed=config.world_seed, indices=range(first, first + own), split="train"
        )
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * lr_factor(config.schedule, step, config.steps)
        losses = head_losses(*_scores(wrapped, views, accelerator))
        loss = torch.stack(list(losses.values())).sum()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if accelerator.is_main_process and (step + 1) % config.log_every_steps == 0:
            _log(config, step + 1, time.monotonic() - started, losses)
    seconds = time.monotonic() - started
    if not accelerator.is_main_process:
        return None
    metrics = {
        "accuracy": accuracy(model, processor, config),
        "training": {
            "images": config.steps * config.batch_images,
            "seconds": round(seconds),
            "parameters": sum(p.numel() for p in tower.parameters()),
        },
    }
    tower.save_pretrained(config.output_dir)
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics


@torch.inference_mode()
def accuracy(
    model: Pretraining, processor: InfinityMMImageProcessor, config: TowerTraining
) -> dict[str, float]:
    """Head -> share of right classes on held-out scenes, over patches that show something."""
    right, total = dict.fromkeys(HEADS, 0), dict.fromkeys(HEADS, 0)
    model.eval()
    for start in range(0, config.num_held_out_scenes, 50):
        indices = range(start, min(start + 50, config.num_held_out_scenes))
        views = Views.draw(processor, world_seed=config.world_seed, indices=indices, split="held_out")
        scores = model(views.pixel_values, views.view_shapes)
        for head, of_head in scores.items():
            asked = views.targets[head] > NOTHING
            right[head] += int((of_head.argmax(-1) == views.targets[head])[asked].sum())
            total[head] += int(asked.sum())
    return {head: round(right[head] / max(1, total[head]), 4) for head in HEADS}


def _scores(
    model: nn.Module, views: Views, accelerator: Accelerator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    device = accelerator.device
    with accelerator.autocast():
        scores = model(views.pixel_values.to(device), views.view_shapes)
    return scores, {head: target.to(device) for head, target in views.targets.items()}


def _processor(shape: ModelSpec) -> InfinityMMImageProcessor:
    return InfinityMMImageProcessor(
        scale_px=shape.scale_px,
        max_slices=shape.max_slices,
        patch_px=shape.patch_px,
        merge=connector_shape(shape.connector, merge=shape.merge, queries=None).merge,
        rounding=shape.rounding,
    )


def _optimizer(model: Pretraining, config: TowerTraining) -> Muon:
    """Muon for the encoder's matrices, AdamW for embeddings, norms, biases and the heads."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "encoder" in name]
    taken = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": hidden, "lr": config.learning_rate, "weight_decay": config.weight_decay, "matrices": True},
        {"params": rest, "lr": config.learning_rate, "weight_decay": 0.0, "matrices": False},
    ]
    return Muon(
        groups,
        betas=(0.9, 0.98),
        eps=1e-8,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
    )


def _log(config: TowerTraining, step: int, seconds: float, losses: dict[str, Tensor]) -> None:
    """One line on the terminal and in `training.jsonl`."""
    images = step * config.batch_images
    row: dict[str, Any] = {"step": step, "images": images, "seconds": round(seconds, 1)}
    row |= {head: round(loss.item(), 4) for head, loss in losses.items()}
    _log_file(config).parent.mkdir(parents=True, exist_ok=True)
    with _log_file(config).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    told = "  ".join(f"{head} {loss.item():.2f}" for head, loss in losses.items())
    print(f"step {step:5d}  {images / seconds:5.1f} images/s  {told}", flush=True)


def _log_file(config: TowerTraining) -> Path:
    return Path(config.output_dir, "training.jsonl")
