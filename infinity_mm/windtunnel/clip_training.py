"""How nano-clip is trained and measured.

    training scenes --render, squeeze--> pixels ----> image tower --\\
                    \\--short caption or some tags--> text tower ----> ClipLoss
                    \\--all tags, right or not--------------------> per-tag sigmoid loss
    held-out scenes -------------------------------------------> precision, recall, average precision
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from infinity_mm.errors import explain
from infinity_mm.record import rng_for
from infinity_mm.windtunnel import captions, world
from infinity_mm.windtunnel.clip import Calibration, ClipShape, NanoClip, round_weights, squeeze, to_tensor
from infinity_mm.windtunnel.clip_tokenizer import NanoTokenizer
from infinity_mm.windtunnel.scene import Scene
from infinity_mm.windtunnel.tags import VOCABULARY, tags


@dataclass(frozen=True, kw_only=True)
class ClipTraining:
    """One training run."""

    output_dir: str
    """Folder to write `config.json`, `model.safetensors` and `metrics.json` to."""
    world_seed: int = 11
    num_scenes: int = 20_000
    """Training scenes, rendered once and kept in memory."""
    shapes_share: float = 0.7
    """Share of them that shows shapes: kinds and colors are learned from a few thousand images, shapes are not."""
    num_steps: int = 1_600
    batch_images: int = 96
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    tag_loss: float = 1.0
    """Weight of the per-tag loss, summed over tags. In a batch most images share a tag, which a contrastive loss
    takes for mismatches; the per-tag loss knows every right tag of every image."""
    num_calibration_scenes: int = 2_000
    """Further training scenes, on which scores are turned into probabilities."""
    num_held_out_scenes: int = 1_000
    """Held-out scenes that the figures are measured on."""
    seed: int = 0
    num_threads: int = 1
    shape: ClipShape = field(default_factory=ClipShape)

    def __post_init__(self) -> None:
        if (
            self.batch_images < 2
            or self.num_steps <= self.warmup_steps
            or self.num_scenes < self.batch_images
        ):
            raise explain(
                what="a contrastive batch needs two images, and there must be steps after the warm-up",
                where="configuration of train/clip.py",
                fix="set batch_images >= 2, num_scenes >= batch_images and num_steps > warmup_steps",
            )


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Rendered scenes with what is right for them."""

    scenes: Sequence[Scene]
    pixels: np.ndarray
    """8-bit, (scenes, side, side, 3)."""
    targets: torch.Tensor
    """1 where the tag is right, (scenes, tags), float."""

    @classmethod
    def draw(
        cls,
        *,
        world_seed: int,
        start: int,
        count: int,
        split: world.Split,
        side_px: int,
        shapes_share: float = 0.0,
    ) -> Pictures:
        """Scenes `start` to `start + count - 1` of a split: a share shows shapes, in the others families take turns."""
        scenes = [
            world.sample_scene(
                world_seed=world_seed,
                index=i,
                split=split,
                family="shapes" if i % 100 < 100 * shapes_share else None,
            )
            for i in range(start, start + count)
        ]
        pixels = np.stack([squeeze(world.render(scene), side_px) for scene in scenes])
        rows = [[float(tag in tags(scene)) for tag in VOCABULARY] for scene in scenes]
        return cls(scenes=scenes, pixels=pixels, targets=torch.tensor(rows))


def train_clip(
    config: ClipTraining, report: Callable[[str], None] = print
) -> tuple[NanoClip, dict[str, Any]]:
    """Train, calibrate and measure; returns the model and its figures."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.num_threads)
    side = config.shape.image_px
    pictures = Pictures.draw(
        world_seed=config.world_seed,
        start=0,
        count=config.num_scenes,
        split="train",
        side_px=side,
        shapes_share=config.shapes_share,
    )
    tokenizer = NanoTokenizer.of_the_world(config.shape.context_tokens)
    model = config.shape.build(tokenizer.vocab_size)
    started = time.monotonic()
    _fit(model, tokenizer, pictures, config, report)
    seconds = time.monotonic() - started
    model.eval()
    round_weights(model)
    fresh = Pictures.draw(
        world_seed=config.world_seed,
        start=config.num_scenes,
        count=config.num_calibration_scenes,
        split="train",
        side_px=side,
    )
    calibration = calibrate(cosines(model, tokenizer, fresh), fresh.targets)
    held_out = Pictures.draw(
        world_seed=config.world_seed,
        start=0,
        count=config.num_held_out_scenes,
        split="held_out",
        side_px=side,
    )
    metrics = measure(cosines(model, tokenizer, held_out), held_out.targets, calibration)
    metrics["training"] = {
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_seen": config.num_steps * config.batch_images,
    }
    return NanoClip(shape=config.shape, model=model, tokenizer=tokenizer, calibration=calibration), metrics


def _fit(
    model: Any,
    tokenizer: NanoTokenizer,
    pictures: Pictures,
    config: ClipTraining,
    report: Callable[[str], None],
) -> None:
    from open_clip import ClipLoss

    tag_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
    tag_bias = torch.nn.Parameter(torch.tensor(-3.0))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": [*rest, tag_scale, tag_bias], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    contrastive, tag_rows = ClipLoss(), tokenizer(VOCABULARY)
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        rng = rng_for(config.seed, "clip", str(step))
        chosen = rng.sample(range(len(pictures.scenes)), config.batch_images)
        texts = tokenizer([_text(pictures.scenes[i], rng) for i in chosen])
        image = model.encode_image(to_tensor(pictures.pixels[chosen]), normalize=True)
        # Captions and tags in one forward pass: the text tower is cheap, starting it is not.
        text = model.encode_text(torch.cat([texts, tag_rows]), normalize=True)
        paired = contrastive(image, text[: len(chosen)], model.logit_scale.exp())
        logits = tag_scale.exp() * image @ text[len(chosen) :].T + tag_bias
        tagged = functional.binary_cross_entropy_with_logits(logits, pictures.targets[chosen])
        loss = paired + config.tag_loss * len(VOCABULARY) * tagged
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0 or step == config.num_steps - 1:
            report(f"step {step:5d}  contrastive {paired.item():.3f}  per tag {tagged.item():.4f}")


def _schedule(step: int, config: ClipTraining) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / (config.num_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def _text(scene: Scene, rng: random.Random) -> str:
    """A short caption, or some of the tags in any order."""
    if rng.random() < 0.5:
        return captions.short(scene, rng)
    names = tags(scene)
    return ", ".join(rng.sample(names, rng.randint(1, len(names))))


@torch.inference_mode()
def cosines(model: Any, tokenizer: NanoTokenizer, pictures: Pictures) -> torch.Tensor:
    """Similarity of every picture with every tag, (scenes, tags)."""
    text = model.encode_text(tokenizer(VOCABULARY), normalize=True)
    parts = [
        model.encode_image(to_tensor(pictures.pixels[start : start + 64]), normalize=True)
        for start in range(0, len(pictures.pixels), 64)
    ]
    return torch.cat(parts) @ text.T


def calibrate(similarity: torch.Tensor, targets: torch.Tensor) -> dict[str, Calibration]:
    """Logistic regression of right or wrong on the cosine, for each tag and for all together."""
    found = {tag: _logistic(similarity[:, i], targets[:, i]) for i, tag in enumerate(VOCABULARY)}
    return found | {"*": _logistic(similarity.flatten(), targets.flatten())}


def _logistic(x: torch.Tensor, y: torch.Tensor) -> Calibration:
    weights = torch.tensor([10.0, -3.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    x, y = x.double(), y.double()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = weights[0] * x + weights[1]
        # A little weight decay keeps the slope finite where the classes separate completely.
        loss = functional.binary_cross_entropy_with_logits(logits, y) + 1e-6 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = weights.tolist()
    return Calibration(slope=round(slope, 4), offset=round(offset, 4))


def measure(
    similarity: torch.Tensor, targets: torch.Tensor, calibration: dict[str, Calibration]
) -> dict[str, Any]:
    """Precision and recall at probability 0.5, average precision and calibration error."""
    rows: dict[str, dict[str, float]] = {}
    slope = torch.tensor([calibration[tag].slope for tag in VOCABULARY])
    offset = torch.tensor([calibration[tag].offset for tag in VOCABULARY])
    probabilities = torch.sigmoid(slope * similarity + offset)
    for i, tag in enumerate(VOCABULARY):
        said, right = probabilities[:, i] >= 0.5, targets[:, i] > 0
        hits = float((said & right).sum())
        rows[tag] = {
            "share": round(float(right.float().mean()), 3),
            "precision": round(hits / max(1.0, float(said.sum())), 3),
            "recall": round(hits / max(1.0, float(right.sum())), 3),
            "average_precision": round(average_precision(probabilities[:, i], right), 3),
        }
    said, right = probabilities >= 0.5, targets > 0
    hits = float((said & right).sum())
    return {
        "held_out_scenes": len(targets),
        "mean_average_precision": round(
            sum(row["average_precision"] for row in rows.values()) / len(rows), 4
        ),
        "precision": round(hits / max(1.0, float(said.sum())), 4),
        "recall": round(hits / max(1.0, float(right.sum())), 4),
        "calibration_error": round(calibration_error(probabilities, right), 4),
        "tags": rows,
    }


def average_precision(scores: torch.Tensor, right: torch.Tensor) -> float:
    """Mean, over the right ones, of the precision at their rank."""
    ranked = right[scores.argsort(descending=True, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / ranked.sum().clamp(min=1))


def calibration_error(probabilities: torch.Tensor, right: torch.Tensor, num_bins: int = 10) -> float:
    """Mean distance between stated probability and observed share, over equal bins of probability."""
    bins = (probabilities.flatten() * num_bins).long().clamp(max=num_bins - 1)
    stated, observed = probabilities.flatten().double(), right.flatten().double()
    total = 0.0
    for bin_ in range(num_bins):
        inside = bins == bin_
        if inside.any():
            total += float((stated[inside].mean() - observed[inside].mean()).abs() * inside.double().mean())
    return total
