"""JPEG bytes to a model's pixel tensor: images a second on one core, ours beside transformers' own processors.

    python benchmarks/preprocessing.py --images 28 --rounds 7

Every contestant gets the same files and one thread, and they take turns: in each round each of them does all images, in
an order that changes with the round. Time is processor time, which a busy machine disturbs less than the clock; ratios
are taken within a round. transformers' processors get the picture as Pillow decodes it, as their documentation does.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.minicpmv4_6.image_processing_minicpmv4_6 import MiniCPMV4_6ImageProcessor
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.vision.images import decode_image
from infinity_mm.vision.pixels import cut_views, normalise, pixels_of, resize, to_patches
from infinity_mm.vision.slicing import plan_slices

SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 720), (1280, 960), (1600, 1200), (1920, 1080))
"""Of the images, in turn; every other image is upright."""
HALF = (0.5, 0.5, 0.5)


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG that costs what a photograph costs: soft shapes, texture of several sizes, sensor noise; quality 90."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for coarse, strength in ((160, 110.0), (40, 60.0), (12, 30.0)):
        blocks = rng.normal(0, 1, (height // coarse + 2, width // coarse + 2, 3)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(blocks[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            picture[..., channel] += strength * np.asarray(plane) * (1.0 if channel == 1 else 0.7)
    picture += 128 + rng.normal(0, 5, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way from bytes to a tensor."""

    name: str
    run: Callable[[bytes], torch.Tensor | None]


def ours(processor: InfinityMMImageProcessor) -> Callable[[bytes], torch.Tensor]:
    return lambda data: processor.preprocess(decode_image(data), return_tensors="pt")["pixel_values"]


def theirs(processor: Callable[..., Any]) -> Callable[[bytes], torch.Tensor]:
    def run(data: bytes) -> torch.Tensor:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return processor(images=[picture], return_tensors="pt")["pixel_values"]

    return run


def decode_only(data: bytes) -> None:
    decode_image(data)


MINICPM: dict[str, Any] = {"scale_px": 448, "max_slices": 9, "merge": 4, "rounding": "round"}
"""Our processor's options that make its slices those of MiniCPM-V 4.6."""
OURS, OURS_MINICPM, OURS_ONEVISION = "ours, as it is", "ours, MiniCPM's slices", "ours, OneVision's tiles"


def contestants() -> list[Contestant]:
    """Ours first."""
    return [
        Contestant(name=OURS, run=ours(InfinityMMImageProcessor())),
        Contestant(name=OURS_MINICPM, run=ours(InfinityMMImageProcessor(**MINICPM))),
        Contestant(name=OURS_ONEVISION, run=ours(InfinityMMImageProcessor(views="anyres"))),
        Contestant(name="MiniCPM-V 4.6, torchvision", run=theirs(MiniCPMV4_6ImageProcessor())),
        Contestant(name="MiniCPM-V 4.6, PIL", run=theirs(MiniCPMV4_6ImageProcessorPil())),
        Contestant(name="LLaVA-OneVision, torchvision", run=theirs(LlavaOnevisionImageProcessor())),
        Contestant(name="LLaVA-OneVision, PIL", run=theirs(LlavaOnevisionImageProcessorPil())),
        Contestant(name="decoding alone", run=decode_only),
    ]


def seconds(run: Callable[[bytes], object], files: list[bytes]) -> float:
    """Processor seconds for all files."""
    start = time.process_time()
    for data in files:
        run(data)
    return time.process_time() - start


def race(files: list[bytes], rounds: int) -> None:
    """Print the table of contestants."""
    field = contestants()
    megapixels = {one.name: sum(_values(one.run(data)) for data in files) / 3e6 / len(files) for one in field}
    times: dict[str, list[float]] = {one.name: [] for one in field}
    rng = random.Random(0)
    for _ in range(rounds):
        for one in rng.sample(field, len(field)):
            times[one.name].append(seconds(one.run, files) / len(files))
    print(
        "| from JPEG to tensor, one core | images/s | Mpx out | ours is faster by | ours on the same views |"
    )
    print("|---|---|---|---|---|")
    for one in field:
        each, size = times[one.name], megapixels[one.name]
        cells = [f"{1 / median(each):.1f}", f"{size:.2f}" if size else "", "", ""]
        same = {"MiniCPM": OURS_MINICPM, "LLaVA-O": OURS_ONEVISION}.get(one.name[:7])
        if same is not None:
            cells[2:] = [_ratio(times[OURS], each), _ratio(times[same], each)]
        print(f"| {one.name} | {' | '.join(cells)} |", flush=True)


def _ratio(ours: list[float], theirs: list[float]) -> str:
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _values(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def parts(files: dict[tuple[int, int], bytes], rounds: int) -> None:
    """Print milliseconds of each part of ours by image size."""
    config = InfinityMMImageProcessor().slice_config()
    print("\n| ours, ms | decode | both resizes | patches | normalise | the resizes with Pillow |")
    print("|---|---|---|---|---|---|")
    for (width, height), data in files.items():
        picture = decode_image(data)
        plan = plan_slices(width, height, config)
        views = cut_views(picture, plan)
        patches = to_patches(views, config.patch_px)
        columns, rows = plan.grid or (0, 0)
        cell = plan.slice_size or (0, 0)
        sizes = [plan.overview_size] + ([(columns * cell[0], rows * cell[1])] if plan.grid else [])

        def resizes(picture: Image.Image = picture, sizes: list[tuple[int, int]] = sizes) -> None:
            pixels = pixels_of(picture)
            for size in sizes:
                resize(pixels, size)

        def pillow(picture: Image.Image = picture, sizes: list[tuple[int, int]] = sizes) -> None:
            for size in sizes:
                picture.resize(size, Image.Resampling.BICUBIC)

        steps: list[Callable[[], object]] = [
            lambda data=data: decode_image(data),
            resizes,
            lambda views=views: to_patches(views, config.patch_px),
            lambda patches=patches: normalise(patches, HALF, HALF),
            pillow,
        ]
        cells = []
        for step in steps:
            each = []
            for _ in range(rounds):
                start = time.process_time()
                step()
                each.append(time.process_time() - start)
            cells.append(f"{1000 * median(each):.1f}")
        print(f"| {width}x{height} | {' | '.join(cells)} |")


def compare(files: list[bytes]) -> None:
    """Print how far our pixels are from MiniCPM's own on the same slices."""
    mine, other = ours(InfinityMMImageProcessor(**MINICPM)), MiniCPMV4_6ImageProcessor()
    largest, num_other, num_all = 0.0, 0, 0
    for data in files:
        rows = mine(data)
        wide = theirs(other)(data)[0]  # (3, patch, patches * patch): the same patches side by side
        patches = wide.unflatten(-1, (-1, 14)).permute(2, 0, 1, 3).flatten(1)
        levels = ((rows - patches) * 127.5).abs()
        largest = max(largest, float(levels.max()))
        num_other, num_all = num_other + int((levels > 0.5).sum()), num_all + levels.numel()
    print(
        f"\nOurs against MiniCPM-V 4.6 (torchvision) on its own slices: {100 * num_other / num_all:.3f} % of values "
        f"differ, largest difference {largest:.2f} levels of 255."
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [SIZES[i % len(SIZES)] for i in range(args.images)]
    files = [photo(*(size if i % 2 else size[::-1]), seed=i) for i, size in enumerate(sizes)]
    print(
        f"{len(files)} JPEGs, {SIZES[0]} to {SIZES[-1]} px, mean {sum(map(len, files)) / len(files) / 1e3:.0f} kB, "
        f"{sum(w * h for w, h in sizes) / len(sizes) / 1e6:.2f} Mpx; {args.rounds} rounds; torch {torch.__version__}\n"
    )
    race(files, args.rounds)
    parts({size: photo(*size, seed=0) for size in SIZES}, args.rounds)
    compare(files)


if __name__ == "__main__":
    main()
