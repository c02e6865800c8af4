"""Packing of a mix like Infinity-MM's: ours beside TRL's and nanoVLM's packers on the same list of samples.

    python benchmarks/packing.py --samples 20000 --nanovlm CHECKOUT
    python benchmarks/packing.py --samples 1000000 --ours-only

Infinity-MM publishes how many samples each category of its second stage holds, not their sizes and lengths. `MIX` says
what is assumed: log-normal image sides and text lengths, by category; a quarter of all samples has no image.
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
from collections.abc import Sequence
from dataclasses import dataclass
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
from infinity_mm.model.build import ModelSpec, build_config, build_processor
from infinity_mm.model.flops import vision_flops, vision_sizes
from infinity_mm.model.tokenizer import build_tokenizer


@dataclass(frozen=True, kw_only=True)
class Category:
    """One kind of samples."""

    millions: float
    """Its samples in the second stage of Infinity-MM, as published."""
    text_tokens: int
    """Median of all text of a sample (assumed)."""
    side_px: int = 0
    """Median of the geometric mean of an image's sides (assumed); 0: no image."""


MIX = {
    "general": Category(millions=7.1, text_tokens=160, side_px=560),
    "ocr": Category(millions=2.6, text_tokens=120, side_px=900),
    "document, chart, screen": Category(millions=5.8, text_tokens=200, side_px=1000),
    "math": Category(millions=1.3, text_tokens=220, side_px=420),
    "text": Category(millions=9.0, text_tokens=450),
}
TEXT_SPREAD, SIDE_SPREAD, ASPECT_SPREAD = 0.8, 0.4, 0.3
"""Standard deviations of the logarithms."""
LONGEST_TEXT = 4000
SPEC = ModelSpec(
    vision_hidden=1152, vision_layers=27, vision_heads=16, vision_mlp=4304, patch_px=14, scale_px=392,
    text_hidden=1536, text_layers=28, text_heads=12, text_kv_heads=2, text_mlp=8960, max_slices=6,
)  # fmt: skip
"""Sizes of the 2B preset: SigLIP so400m and Qwen2.5-1.5B; no weights are made."""


def draw(num_samples: int, seed: int) -> list[Measured]:
    """Samples of the mix."""
    rng = np.random.default_rng(seed)
    names = list(MIX)
    shares = np.array([MIX[name].millions for name in names])
    kinds = rng.choice(len(names), num_samples, p=shares / shares.sum())
    text = np.exp(rng.normal(0, TEXT_SPREAD, num_samples))
    side = np.exp(rng.normal(0, SIDE_SPREAD, num_samples))
    aspect = np.exp(rng.normal(0.1, ASPECT_SPREAD, num_samples))
    samples: list[Measured] = []
    for i, kind in enumerate(kinds):
        category = MIX[names[kind]]
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


def make_planner(samples: Sequence[Measured], folder: Path, args: argparse.Namespace) -> Planner:
    """Our planner over a stored index of the samples."""
    for number in range(-(-len(samples) // PART_SAMPLES)):
        write_part(folder, number, samples[number * PART_SAMPLES : (number + 1) * PART_SAMPLES])
    source: Any = Nothing(len(samples))
    index = StoredIndex(folder, len(samples))
    tokenizer = build_tokenizer(["What is it? user assistant system\n"] * 3, 300)
    config = build_config(SPEC, tokenizer)
    mixture = Mixture([WeightedSource(source=source, name="drawn", index=index)])
    return Planner(
        [Phase(from_step=0, mixture=mixture)],
        Encoder(build_processor(config, tokenizer)),
        PlanConfig(row_tokens=args.row_tokens, window=args.window),
        vision_cost=partial(vision_flops, vision_sizes(config)),
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


def imbalance(rows: Rows, batch_rows: int, world_size: int, *, balanced: bool) -> float:
    """Mean over steps of the busiest process's vision work above the mean; `balanced`: rows assigned as we do."""
    excess: list[float] = []
    for start in range(0, len(rows) - batch_rows + 1, batch_rows):
        work = [vision for _, vision in rows[start : start + batch_rows]]
        if balanced:
            shares = [[i for part in assign(work, world_size, r, 1) for i in part] for r in range(world_size)]
        else:
            shares = [list(range(r, batch_rows, world_size)) for r in range(world_size)]
        loads = [sum(work[i] for i in share) for share in shares]
        excess.append(max(loads) * world_size / max(1, sum(loads)) - 1)
    return sum(excess) / max(1, len(excess))


def report(
    name: str, rows: Rows, seconds: float, args: argparse.Namespace, *, balanced: bool = False
) -> None:
    fill = sum(tokens for tokens, _ in rows) / (len(rows) * args.row_tokens)
    cells = [
        f"{imbalance(rows, args.batch_rows, size, balanced=balanced):.1%}" for size in (8, args.batch_rows)
    ]
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
    args = parser.parse_args()
    samples = draw(args.samples, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        planner = make_planner(samples, Path(folder), args)
        print(f"{args.samples:,} samples, rows of {args.row_tokens}, steps of {args.batch_rows} rows\n")
        print(f"| packer | rows | fill | vision, 8 processes | vision, {args.batch_rows} processes | s |")
        print("|---|---|---|---|---|---|")
        start = time.perf_counter()
        rows = ours(planner, args.workers)
        report(f"ours, windows of {args.window}", rows, time.perf_counter() - start, args, balanced=True)
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
