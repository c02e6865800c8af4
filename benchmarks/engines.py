"""Requests a second of the transformers engine on a model of a few million parameters, by what it keeps of images.

    python benchmarks/engines.py --images 32 --calls 8

The weights are random unless `--model` names a folder; replies then run to their full length, which is the worst case.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from infinity_mm.engines.any_model import AnyModel
from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.model.build import NANO, build_model
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn

TEXT = "what color is the large circle left of the small blue square how many triangles are there describe"
WORDS = TEXT.split()
SCORES = tuple(str(score) for score in range(1, 11))


class Noise:
    """Images of random pixels, by hash."""

    def __init__(self, count: int, side_px: int) -> None:
        rng = np.random.default_rng(0)
        self.data: dict[str, bytes] = {}
        for _ in range(count):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, format="PNG")
            self.data[hashlib.sha256(buffer.getvalue()).hexdigest()] = buffer.getvalue()
        self.refs = [
            ImageRef(sha256=sha256, uri=f"memory:{sha256}", width=side_px, height=side_px)
            for sha256 in self.data
        ]

    def read(self, image: ImageRef) -> bytes:
        return self.data[image.sha256]


def request(image: ImageRef, call: int, max_new_tokens: int) -> Request:
    """Every fourth call is a judge's, with choices; a third of the rest is sampled."""
    text = " ".join(WORDS[(call + i) % len(WORDS)] for i in range(12))
    return Request(
        turns=(Turn("user", (ImageSlot(0), Text(text))),),
        images=(image,),
        max_new_tokens=max_new_tokens,
        temperature=0.7 if call % 3 == 1 else 0.0,
        seed=call,
        choices=SCORES if call % 4 == 3 else (),
    )


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Requests answered, against the clock and against processor time (which a busy machine disturbs less)."""

    per_s: float
    per_cpu_s: float


class Stopwatch:
    """Started when made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, count: int) -> Rate:
        wall_s, cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Rate(per_s=count / wall_s, per_cpu_s=count / cpu_s)


async def journeys(spec: TransformersSpec, images: Noise, calls: int, max_new_tokens: int) -> Rate:
    """Every image makes its calls one after the other, all images at once."""
    async with spec.open(images) as engine:

        async def journey(image: ImageRef) -> Sequence[Reply | Failure]:
            return [
                (await engine.generate([request(image, call, max_new_tokens)]))[0] for call in range(calls)
            ]

        watch = Stopwatch()
        answers = await asyncio.gather(*(journey(image) for image in images.refs))
        rate = watch.rate(len(images.refs) * calls)
    failures = [answer for row in answers for answer in row if isinstance(answer, Failure)]
    if failures:
        raise SystemExit(f"{len(failures)} failures, first: {failures[0]}")
    return rate


def hf_generate(folder: str, images: Noise, calls: int, max_new_tokens: int, max_batch: int) -> Rate:
    """The same requests through the processor and `generate` of transformers, in full batches."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    backend = AnyModel(model, AutoProcessor.from_pretrained(folder), images, cache_bytes=1 << 28)
    requests = [request(image, call, max_new_tokens) for call in range(calls) for image in images.refs]
    watch = Stopwatch()
    with torch.inference_mode():
        for first in range(0, len(requests), max_batch):
            backend.answer([backend.prepare(r) for r in requests[first : first + max_batch]])
    return watch.rate(len(requests))


def show(name: str, rate: Rate) -> None:
    """One row of the table."""
    print(f"{name:44} {rate.per_s:12.1f} {rate.per_cpu_s:16.1f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a folder; default: random weights of the nano size")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--calls", type=int, default=8, help="calls per image")
    parser.add_argument("--side-px", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-generate", action="store_true", help="leave out the slow reference")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = Noise(args.images, args.side_px)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            model, processor = build_model(NANO, build_tokenizer([TEXT], 320))
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            print(f"random weights, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
        source = args.model or folder
        print(
            f"{args.images} images x {args.calls} calls, {args.max_new_tokens} new tokens, {args.threads} threads\n"
        )
        print(f"{'what is kept between calls':44} {'requests/s':>12} {'per CPU second':>16}")
        for name, cache_mb in (("nothing", 0), ("image features and prefilled prefixes", 512)):
            spec = TransformersSpec(
                model=source, cache_mb=cache_mb, threads=args.threads, max_batch=args.max_batch
            )
            rate = asyncio.run(journeys(spec, images, args.calls, args.max_new_tokens))
            show(name, rate)
        if not args.skip_generate:
            rate = hf_generate(source, images, args.calls, args.max_new_tokens, args.max_batch)
            show("decoded images only; transformers generate", rate)


if __name__ == "__main__":
    main()
