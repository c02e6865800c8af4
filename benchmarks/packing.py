"""Packing of a mix like Infinity-MM's: ours beside TRL's and nanoVLM's packers on the same list of samples.

    python benchmarks/packing.py --samples 20000 --nanovlm CHECKOUT
    python benchmarks/packing.py --samples 1000000 --ours-only
    python benchmarks/packing.py --samples 20000 --curriculum

Infinity-MM publishes how many samples each category of a stage holds, not their sizes and lengths. `CATEGORIES` says
what is assumed: log-normal image sides and text lengths. `--curriculum` packs the mix of every stage as
configs/train/aquila_vl_2b/curriculum.yaml says.
TRL's `pack_dataset` is called as it is, with sequences of the planned lengths (it refuses images, so it packs blindly).
nanoVLM's packer is imported from a checkout and called as its training script does, without its limit on images.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infinity_mm.data.encode import Encoder
from infinity_mm.data.index import PART_SAMPLES, StoredIndex, write_part
from infinity_mm.data.loader import assign
from infinity_mm.data.measure import Measured
from infinity_mm.data.mixture import Mixture, Phase, WeightedSource
from infinity_mm.data.plan import PlanConfig, PlannedWindows, Planner
from infinity_mm.data.workers import in_workers
from infinity_mm.families.base import Limits
from infinity_mm.families.infinity_mm import change_views
from infinity_mm.model.build import ModelSpec, build_config, build_processor
from infinity_mm.model.flops import vision_flops, vision_sizes
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.training.config import SftConfig
from infinity_mm.training.curriculum import load_stages
from infinity_mm.training.start import limits_of


@dataclass(frozen=True, kw_only=True)
class Category:
    """One kind of samples."""

    text_tokens: int
    """Median of all text of a sample (assumed)."""
    side_px: int = 0
    """Median of the geometric mean of an image's sides (assumed); 0: no image."""


CATEGORIES = {
    "caption": Category(text_tokens=90, side_px=560),
    "general": Category(text_tokens=160, side_px=560),
    "ocr": Category(text_tokens=120, side_px=900),
    "document, chart, screen": Category(text_tokens=200, side_px=1000),
    "math": Category(text_tokens=220, side_px=420),
    "text": Category(text_tokens=450),
    "synthetic": Category(text_tokens=300, side_px=700),
}
STAGE_1 = {"caption": 10.0}
STAGE_2 = {"general": 7.1, "ocr": 2.6, "document, chart, screen": 5.8, "math": 1.3, "text": 9.0}
STAGE_3 = {"general": 1.3, "ocr": 0.3, "document, chart, screen": 1.9, "math": 0.7, "text": 1.8}
STAGE_4 = {
    "general": 1.0, "ocr": 0.5, "document, chart, screen": 0.1, "math": 0.3, "text": 0.3, "synthetic": 0.8
}  # fmt: skip
STAGES = {
    "stage_1": STAGE_1, "stage_2a": STAGE_2, "stage_2b": STAGE_2, "stage_2c": STAGE_2, "stage_3": STAGE_3,
    "stage_4": STAGE_4,
}  # fmt: skip
"""Category -> millions of samples, as published; the second stage is cut at random into three."""
CURRICULUM = Path(__file__).parents[1] / "configs" / "train" / "aquila_vl_2b" / "curriculum.yaml"
TEXT_SPREAD, SIDE_SPREAD, ASPECT_SPREAD = 0.8, 0.4, 0.3
"""Standard deviations of the logarithms."""
LONGEST_TEXT = 4000
SPEC = ModelSpec(
    vision_hidden=1152, vision_layers=27, vision_heads=16, vision_mlp=4304, patch_px=14, scale_px=392,
    text_hidden=1536, text_layers=28, text_heads=12, text_kv_heads=2, text_mlp=8960, max_slices=6,
)  # fmt: skip
"""Sizes of the 2B preset: SigLIP so400m and Qwen2.5-1.5B; no weights are made."""


AQUILA = replace(
    SPEC, vision_layers=26, scale_px=384, views="anyres", connector="mlp", merge=1, max_slices=0, max_tiles=9
)
"""The same sizes, images cut by anyres."""


def draw(num_samples: int, seed: int, mix: Mapping[str, float] = STAGE_2) -> list[Measured]:
    """Samples of a mix."""
    rng = np.random.default_rng(seed)
    names = list(mix)
    shares = np.array([mix[name] for name in names])
    kinds = rng.choice(len(names), num_samples, p=shares / shares.sum())
    text = np.exp(rng.normal(0, TEXT_SPREAD, num_samples))
    side = np.exp(rng.normal(0, SIDE_SPREAD, num_samples))
    aspect = np.exp(rng.normal(0.1, ASPECT_SPREAD, num_samples))
    samples: list[Measured] = []
    for i, kind in enumerate(kinds):
        category = CATEGORIES[names[kind]]
        tokens = min(LONGEST_TEXT, 12 + int(category.text_tokens * text[i]))
        mean = category.side_px * side[i]
        sizes = (
            ((max(28, int(mean * aspect[i] ** 0.5)), max(28, int(mean / aspect[i] ** 0.5))),) if mean else ()
        )
        samples.append(
            Measured(
                id=str(i), domain=names[kind], tokens=(0, tokens), images=(0, len(sizes)), image_sizes=sizes
            )
        )
    return samples


class Nothing:
    """A source whose samples are only ever looked up in the index."""

    turns = "causal"
    fingerprint = "nothing"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def make_planner(
    samples: Sequence[Measured],
    folder: Path,
    config: PlanConfig,
    spec: ModelSpec = SPEC,
    limits: Limits | None = None,
) -> Planner:
    """Our planner over a stored index of the samples."""
    for number in range(-(-len(samples) // PART_SAMPLES)):
        write_part(folder, number, samples[number * PART_SAMPLES : (number + 1) * PART_SAMPLES])
    source: Any = Nothing(len(samples))
    tokenizer = build_tokenizer(["What is it? user assistant system\n"] * 3, 300)
    model = build_config(spec, tokenizer)
    processor = build_processor(model, tokenizer)
    change_views(model, processor.image_processor, limits or Limits())
    part = WeightedSource(source=source, name="drawn", index=StoredIndex(folder, len(samples)))
    return Planner(
        [Phase(from_step=0, mixture=Mixture([part]))],
        Encoder(processor),
        config,
        vision_cost=partial(vision_flops, vision_sizes(model)),
    )


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How well rows were packed."""

    fill: float
    dropped: float
    """Share of the samples."""
    samples_per_step: float
    mean_excess: float
    """Of the busiest of 8 processes over the mean of a step, in vision work: mean over steps."""
    worst_excess: float
    """The largest over steps."""


def pack_stage(config: SftConfig, samples: Sequence[Measured], *, batch_rows: int | None = None) -> Packing:
    """What a stage of a curriculum makes of drawn samples, on 8 processes; `batch_rows` in place of its own."""
    plan = PlanConfig(row_tokens=config.row_tokens, window=config.window, over_long=config.over_long)
    batch = batch_rows or config.global_batch_rows
    with tempfile.TemporaryDirectory() as folder:
        planner = make_planner(samples, Path(folder), plan, AQUILA, limits_of(config.model))
        windows = [planner.window(0, 0, number) for number in range(planner.windows_per_epoch(0))]
    rows = [(sum(s.tokens for s in r), sum(s.vision for s in r)) for w in windows for r in w.rows]
    excess = excesses(rows, batch, 8, balanced=True)
    num_dropped = sum(len(window.dropped) for window in windows)
    return Packing(
        fill=sum(tokens for tokens, _ in rows) / (len(rows) * config.row_tokens),
        dropped=num_dropped / len(samples),
        samples_per_step=(len(samples) - num_dropped) / len(rows) * batch,
        mean_excess=sum(excess) / len(excess),
        worst_excess=max(excess),
    )


def print_curriculum(num_samples: int) -> None:
    """A table of all stages."""
    print(
        "| stage | row tokens | window | rows a step | samples a step | fill | dropped | vision: mean | most |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for stage in load_stages(CURRICULUM):
        config = stage.config
        found = pack_stage(config, draw(num_samples, 0, STAGES[stage.name]))
        print(
            f"| {stage.name} | {config.row_tokens:,} | {config.window:,} | {config.global_batch_rows} | "
            f"{found.samples_per_step:.0f} | {found.fill:.2%} | {found.dropped:.2%} | {found.mean_excess:.1%} | "
            f"{found.worst_excess:.1%} |",
            flush=True,
        )


Rows = list[tuple[int, int]]
"""(useful tokens, vision work) of each row, in the order in which they are trained on."""


def ours(planner: Planner, num_workers: int) -> Rows:
    numbers = ((0, 0, window) for window in range(planner.windows_per_epoch(0)))
    return [
        (sum(s.tokens for s in row), sum(s.vision for s in row))
        for window in in_workers(PlannedWindows(planner), numbers, num_workers)
        for row in window.rows
    ]


def costs(planner: Planner, samples: Sequence[Measured]) -> list[tuple[int, int]]:
    """(tokens, vision work) of the samples that fit a row, in random order."""
    found: list[tuple[int, int]] = []
    for sample in samples:
        fit = planner._fate("drawn", sample)
        if len(fit) == 3:
            found.append((fit.tokens, fit.vision))
    random.Random(0).shuffle(found)
    return found


def trl_rows(samples: Sequence[tuple[int, int]], row_tokens: int) -> Rows:
    """TRL's best-fit decreasing, on sequences that repeat the number of their sample."""
    datasets, trl = importlib.import_module("datasets"), importlib.import_module("trl")
    table = datasets.Dataset.from_dict({"input_ids": [[i] * tokens for i, (tokens, _) in enumerate(samples)]})
    packed = trl.pack_dataset(table, row_tokens, strategy="bfd")
    rows: Rows = []
    for row in packed:
        starts = np.cumsum([0, *row["seq_lengths"][:-1]])
        members = [row["input_ids"][start] for start in starts]
        rows.append((len(row["input_ids"]), sum(samples[i][1] for i in members)))
    return _shuffled(rows)


def nanovlm_rows(
    checkout: Path, samples: Sequence[tuple[int, int]], row_tokens: int, buffer_rows: int
) -> Rows:
    """nanoVLM's balanced knapsack over buffers of `buffer_rows` rows; it adds one padding token to each sample."""
    sys.path.insert(0, str(checkout))
    knapsack: Any = importlib.import_module("data.advanced_datasets").ConstantLengthDataset
    rows: Rows = []
    buffer: list[tuple[int, int]] = []
    for sample in [*samples, None]:
        if sample is not None:
            buffer.append(sample)
        if sample is None or sum(tokens + 1 for tokens, _ in buffer) >= row_tokens * buffer_rows:
            lengths = [{"input_ids": range(tokens + 1), "images": ()} for tokens, _ in buffer]
            for group in knapsack._balanced_greedy_knapsack(None, lengths, row_tokens, delta=5):
                rows.append((sum(buffer[i][0] for i in group), sum(buffer[i][1] for i in group)))
            buffer = []
    return rows


def _shuffled(rows: Rows) -> Rows:
    random.Random(0).shuffle(rows)
    return rows


def excesses(rows: Rows, batch_rows: int, world_size: int, *, balanced: bool) -> list[float]:
    """Of each step, the busiest process's vision work above the mean; `balanced`: rows assigned as we do."""
    excess: list[float] = []
    for start in range(0, len(rows) - batch_rows + 1, batch_rows):
        work = [vision for _, vision in rows[start : start + batch_rows]]
        if balanced:
            shares = [[i for part in assign(work, world_size, r, 1) for i in part] for r in range(world_size)]
        else:
            shares = [list(range(r, batch_rows, world_size)) for r in range(world_size)]
        loads = [sum(work[i] for i in share) for share in shares]
        excess.append(max(loads) * world_size / max(1, sum(loads)) - 1)
    return excess


def report(
    name: str, rows: Rows, seconds: float, args: argparse.Namespace, *, balanced: bool = False
) -> None:
    fill = sum(tokens for tokens, _ in rows) / (len(rows) * args.row_tokens)
    cells: list[str] = []
    for size in (8, args.batch_rows):
        excess = excesses(rows, args.batch_rows, size, balanced=balanced)
        cells.append(f"{sum(excess) / len(excess):.1%} ({max(excess):.1%})")
    print(f"| {name} | {len(rows):,} | {fill:.2%} | {cells[0]} | {cells[1]} | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=0, help="processes that plan, for our row")
    parser.add_argument("--nanovlm", type=Path, help="checkout of huggingface/nanoVLM")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--curriculum", action="store_true", help="the stages of Aquila-VL-2B, ours alone")
    args = parser.parse_args()
    if args.curriculum:
        print_curriculum(args.samples)
        return
    samples = draw(args.samples, seed=0)
    plan = PlanConfig(row_tokens=args.row_tokens, window=args.window)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
        planner = make_planner(samples, Path(name), plan)
        print(f"{args.samples:,} samples, rows of {args.row_tokens}, steps of {args.batch_rows} rows\n")
        print(f"| packer | rows | fill | vision, 8 processes | vision, {args.batch_rows} processes | s |")
        print("|---|---|---|---|---|---|")
        start = time.perf_counter()
        rows = ours(planner, args.workers)
        report(f"ours, windows of {args.window}", rows, time.perf_counter() - start, args, balanced=True)
        pictures = [sample for sample in samples if sample.image_sizes]
        start = time.perf_counter()
        rows = ours(make_planner(pictures, Path(other), plan), args.workers)
        report("ours, samples with images alone", rows, time.perf_counter() - start, args, balanced=True)
        if args.ours_only:
            return
        fitting = costs(planner, samples)
        start = time.perf_counter()
        rows = trl_rows(fitting, args.row_tokens)
        report("TRL `pack_dataset`, bfd", rows, time.perf_counter() - start, args)
        if args.nanovlm is None:
            print("nanoVLM: not measured; give its checkout with --nanovlm")
            return
        for buffer_rows in (8, 64):
            start = time.perf_counter()
            rows = nanovlm_rows(args.nanovlm, fitting, args.row_tokens, buffer_rows)
            report(f"nanoVLM, buffers of {buffer_rows} rows", rows, time.perf_counter() - start, args)


if __name__ == "__main__":
    main()
