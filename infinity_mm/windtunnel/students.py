"""Students of equal steps from nano-base: what raw, filtered and true data are worth, beside a blank image.

GradedPair* --> raw, truth, blank-image Parquet   (for the experiment only, marked as such)
published Parquet --> filtered
each arm --training.sft.train--> checkpoint --eval--> accuracy on held-out scenes that no pair came from
"""

from __future__ import annotations

import io
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from infinity_mm.engines.base import ImageReader
from infinity_mm.eval.memory_images import BLANK_GREY
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ImageSlot, Sample, Text, Turn
from infinity_mm.synth.publish import parquet_bytes, row
from infinity_mm.training.config import DataConfig, GroupConfig, ScheduleConfig, SftConfig, StartConfig
from infinity_mm.training.sft import train
from infinity_mm.windtunnel import answers, truth
from infinity_mm.windtunnel.questions import Question
from infinity_mm.windtunnel.scoring import GradedPair

ARMS = ("blank_image", "raw", "filtered", "truth")
"""Trained arms; `untrained` is nano-base itself."""
MARK = "wind-tunnel experiment, not for publishing"
"""Licence and source of the experiment's own data sets."""


@dataclass(frozen=True, kw_only=True)
class BlankImages(ImageReader):
    """Every image as a grey one of its size."""

    def read(self, image: Any) -> bytes:
        """Encoded bytes."""
        buffer = io.BytesIO()
        Image.new("RGB", (image.width, image.height), (BLANK_GREY,) * 3).save(buffer, format="PNG")
        return buffer.getvalue()


def write_arms(
    folder: Path, pairs: Sequence[GradedPair], images: ImageReader, *, prompts: str
) -> dict[str, int]:
    """Write the experiment's data sets, one Parquet file an arm; returns pairs per arm.

    `raw`: every answered pair as it was first answered. `truth`: the same questions with right answers in the same
    styles; questions without one are left out. `blank_image`: the kept pairs on grey images.
    """
    prompt_set = PromptSet.load(prompts)
    kept = [pair for pair in pairs if pair.kept]
    arms: Mapping[str, tuple[Sequence[GradedPair], Callable[[GradedPair], str | None], ImageReader]] = {
        "raw": (pairs, lambda pair: pair.original, images),
        "truth": (pairs, _true_answer, images),
        "blank_image": (kept, lambda pair: pair.sample.answer, BlankImages()),
    }
    counts = {"filtered": len(kept)}
    for arm, (chosen, answer, reader) in arms.items():
        conversations, counts[arm] = _conversations(chosen, answer, prompt_set)
        rows = [row(sample, [], reader) for sample in conversations]
        file = folder / arm / "train.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(parquet_bytes([r | {"source": MARK, "licence": MARK} for r in rows]))
    return counts


def _true_answer(pair: GradedPair) -> str | None:
    """A right answer in the pair's style, from the scene."""
    accepted = truth.ask(pair.scene, pair.sample.question or "")
    if not isinstance(accepted, truth.Accepted):
        return None
    question = Question(
        type=accepted.type,
        text=pair.sample.question or "",
        answers=accepted.answers,
        boxes=(),
        family=pair.scene.family,
    )
    style: Any = pair.sample.style
    return answers.answer(pair.scene, question, style, random.Random(0))


def _conversations(
    pairs: Sequence[GradedPair], answer: Callable[[GradedPair], str | None], prompts: PromptSet
) -> tuple[list[Sample], int]:
    """One conversation per image, and the number of pairs in all."""
    by_image: dict[str, list[tuple[Sample, str]]] = defaultdict(list)
    for pair in pairs:
        text = answer(pair)
        if text:
            by_image[pair.sample.images[0].sha256].append((pair.sample, text))
    conversations = []
    for sha256, rows in sorted(by_image.items()):
        turns: list[Turn] = []
        for sample, text in rows:
            prompt = prompts.render(f"answer_{sample.style}", question=sample.question or "")
            front = () if turns else (ImageSlot(0),)
            turns += [Turn("user", (*front, Text(prompt))), Turn("assistant", (Text(text),))]
        conversations.append(replace(rows[0][0], id=sha256[:16], turns=tuple(turns)))
    return conversations, sum(map(len, by_image.values()))


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    """How every student is trained; the arms differ in their data alone."""

    base: Path
    """Checkpoint folder all students start from."""
    steps: int
    """Optimiser steps of every arm."""
    seed: int
    """Order of the samples."""
    threads: int | None
    """CPU threads; None leaves torch's choice."""


def train_student(data: str, out_dir: Path, recipe: StudentRecipe) -> Path:
    """Train one student on a Parquet file or folder with the shipped trainer; returns its checkpoint folder."""
    part = GroupConfig(lr=1e-3, weight_decay=0.05)
    config = SftConfig(
        out_dir=out_dir,
        model=StartConfig(path=str(recipe.base)),
        data=(DataConfig(kind="parquet", options={"path": data, "turns": "independent"}),),
        row_tokens=512,
        global_batch_rows=8,
        micro_batch_rows=8,
        window=64,
        steps=recipe.steps,
        vision_tower=GroupConfig(freeze=True),
        connector=part,
        language_model=part,
        schedule=ScheduleConfig(name="cosine", warmup_steps=recipe.steps // 10, final_ratio=0.05),
        optimizer="muon",
        loss_weighting="square_root",
        precision=fast_precision(),
        seed=recipe.seed,
        num_workers=1,
        threads=recipe.threads,
        save_every_steps=recipe.steps,
        keep_last=1,
    )
    result = train(config, quiet=True)
    assert result.model_dir is not None, "a student was stopped early; run the same command again to go on"
    return result.model_dir


def fast_precision() -> Literal["fp32", "bf16"]:
    """bfloat16 where it is faster: on a GPU, or on a CPU with AMX tiles; elsewhere it is slower than float32."""
    has_tiles = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    return "bf16" if has_tiles or torch.cuda.is_available() else "fp32"
