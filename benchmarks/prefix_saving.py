"""One image, one prefill: the journeys, image by image, against the same stages one after the other over all images.

    <environment with vLLM>/python benchmarks/prefix_saving.py --images 48

One vLLM server with random weights (8 layers of width 256, 1,087 tokens an image) and room in its KV cache for a
third of the images. Both orders make the same six calls an image (ask, check, answer, judge, rewrite, judge again)
with the prompts of the set `default`, through the stages of a run. The server computes every reply; since random
weights say nothing, its text is then exchanged for one that lets the sample go on. Each order has its own images;
which one begins alternates by repeat, and the interval is Student's, over repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import io
import os
import re
import socket
import string
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from interval import ROUNDS, interval
from PIL import Image
from vllm_plugin import python_path

from infinity_mm.engines.base import Capabilities, Engine, Failure, Reply, Request
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.tokenizer import build_tokenizer
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Emitted, ImageRef, Sample
from infinity_mm.serving.server import ServeConfig, running, serve_command, serve_environment
from infinity_mm.synth.journey import Metered, travel
from infinity_mm.synth.spread import spread
from infinity_mm.synth.stage import Context, Stage
from infinity_mm.synth.stages import JourneyConfig, build_stages
from infinity_mm.synth.styles import StylesConfig
from infinity_mm.taxonomy.tree import Tree

MODEL = ModelSpec(
    vision_hidden=192, vision_layers=5, vision_heads=6, vision_mlp=768, patch_px=8, scale_px=176, max_slices=8,
    text_hidden=256, text_layers=8, text_heads=8, text_kv_heads=4, text_mlp=1024, max_positions=2048,
)  # fmt: skip
SIZE = (352, 704)
PROMPT_TOKENS = 1344
"""A little more than one prompt has; what a third of the images needs in the KV cache is counted with it."""
BLOCK = 32
"""Tokens in one block of the KV cache; vLLM's own choice is 16 on a GPU, and 128 on a CPU, which shares less."""
REPLY_TOKENS = 24
ANSWER = "The largest square is {} and lies left of the red circle, near the top of the picture."
PLANNED = [{"type": "", "examples": ["What color is the small circle?", "How many triangles are there?"]}]


class Pictures:
    """Random blocks of color, by hash."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.data: dict[str, bytes] = {}
        for _ in range(count):
            blocks = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            blocks.resize(SIZE, Image.Resampling.NEAREST).save(buffer, format="PNG")
            self.data[hashlib.sha256(buffer.getvalue()).hexdigest()] = buffer.getvalue()
        self.samples = [
            Sample(
                id=sha256[:12], images=(ImageRef(sha256=sha256, uri="memory", width=SIZE[0], height=SIZE[1]),)
            )
            for sha256 in self.data
        ]

    def read(self, image: ImageRef) -> bytes:
        return self.data[image.sha256]


class Scripted:
    """The server's replies, with their text exchanged for one that lets the sample go on to the next stage."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.capabilities: Capabilities = engine.capabilities
        self.score = engine.score
        self.fingerprint = "scripted " + engine.fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        asked = [replace(r, choices=(), max_new_tokens=min(r.max_new_tokens, REPLY_TOKENS)) for r in requests]
        answers = await self._engine.generate(asked)
        return [
            replace(answer, text=script(request.turns[-1].text), finish_reason="stop")
            if isinstance(answer, Reply)
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]


def script(prompt: str) -> str:
    """What a teacher would say at this stage."""
    if "Write one question" in prompt:
        return "What color is the largest square?"
    if "yes or no" in prompt:
        return "yes"
    if "Grade an answer" in prompt:
        return "9" if "green" in prompt else "6"
    return ANSWER.format("green" if ANSWER.format("blue") in prompt else "blue")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One order of work."""

    wall_s: float
    cpu_s: float
    """Of all the server's processes; says more than the wall on a machine with other work."""
    calls: int
    prompt_tokens: int
    cached_tokens: int
    queries: float
    """Prompt tokens looked up in the prefix cache, by the server's own count."""
    hits: float
    conversations: int


class Work:
    """The stages, an engine behind them, and what they cost."""

    def __init__(self, engine: Engine, in_flight: int) -> None:
        config = JourneyConfig(
            policy=Policy(keep_at=8, rewrite_at=5), styles=StylesConfig(names=("short",), suit_the_type=False)
        )
        tree = Tree.load("default")
        prompts = PromptSet.load(config.prompts)
        self.stages = build_stages(config, tree, prompts)
        self.planned = [entry | {"type": next(iter(tree.leaves))} for entry in PLANNED]
        self.context = Context(engines={"teacher": engine, "judge": engine}, prompts=prompts, seed=0)
        self.metrics: defaultdict[str, float] = defaultdict(float)
        self._places = asyncio.Semaphore(in_flight)

    async def image_by_image(self, images: Sequence[Sample]) -> list[Sample]:
        """As a run does it."""

        async def one(image: Sample) -> list[Sample]:
            async with self._places:
                journey = await travel(image, self.planned, self.stages, self.context)
            for key, value in journey.metrics.items():
                self.metrics[key] += value
            return journey.samples

        return [sample for samples in await asyncio.gather(*map(one, images)) for sample in samples]

    async def stage_by_stage(self, images: Sequence[Sample]) -> list[Sample]:
        """All images through one stage before the next begins."""
        alive = [
            [o.sample for o in spread(image, self.planned) if isinstance(o, Emitted)] for image in images
        ]
        for stage in self.stages:
            alive = await asyncio.gather(*(self._stage(stage, samples) for samples in alive))
        return [sample for samples in alive for sample in samples]

    async def _stage(self, stage: Stage, samples: Sequence[Sample]) -> list[Sample]:
        if not samples:
            return []
        engines = {
            role: Metered(engine, stage.name, self.metrics) for role, engine in self.context.engines.items()
        }
        async with self._places:
            outcomes = await stage.run(samples, replace(self.context, engines=engines))
        return [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]


def cpu_s(session: int) -> float:
    """Processor time so far of the processes of a session."""
    total = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = file.read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12]) if int(fields[3]) == session else 0
    return total / os.sysconf("SC_CLK_TCK")


async def measure(
    url: str,
    server_pid: int,
    model: str,
    letters: Sequence[int],
    pictures: Pictures,
    order: str,
    in_flight: int,
) -> Measured:
    spec = OpenAISpec(
        base_url=f"{url}/v1",
        model=model,
        revision="random",
        max_retries=0,
        extra_body={"ignore_eos": True, "allowed_token_ids": letters},
    )
    async with spec.open(pictures) as server:
        work = Work(Scripted(server), in_flight)
        before, cpu, start = prefix_cache(url), cpu_s(server_pid), time.perf_counter()
        samples = await getattr(work, order)(pictures.samples)
        wall_s, after = time.perf_counter() - start, prefix_cache(url)

    def total(name: str) -> int:
        return int(sum(value for key, value in work.metrics.items() if key.startswith(f"{name}.")))

    if total("failed_calls") or len(samples) != len(pictures.samples):
        raise SystemExit(
            f"{len(samples)} of {len(pictures.samples)} images came through: {dict(work.metrics)}"
        )
    return Measured(
        wall_s=wall_s,
        cpu_s=cpu_s(server_pid) - cpu,
        calls=total("calls"),
        prompt_tokens=total("prompt_tokens"),
        cached_tokens=total("cached_tokens"),
        queries=after["queries"] - before["queries"],
        hits=after["hits"] - before["hits"],
        conversations=len(samples),
    )


def prefix_cache(url: str) -> dict[str, float]:
    """The server's counters."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    return {
        name: sum(
            map(float, re.findall(rf"^vllm:prefix_cache_{name}_total{{.*?}} (\S+)", text, re.MULTILINE))
        )
        for name in ("queries", "hits")
    }


def save_model(folder: Path) -> list[int]:
    """Returns the tokens of letters: other replies may be nothing but spaces, which counts as none."""
    prompts = PromptSet.load("default")
    tokenizer = build_tokenizer(prompts.texts.values(), 2048)
    model, processor = build_model(MODEL, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return [tokenizer.get_vocab()[letter] for letter in string.ascii_letters]


def serve_config(folder: str, num_images: int, in_flight: int) -> ServeConfig:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    held = num_images // 3
    args: dict[str, Any] = {
        "--max-model-len": 2048,
        # So many that nothing is prefilled in parts: vLLM's CPU core dies where that meets a seed (`ask` samples).
        "--max-num-batched-tokens": in_flight * 2048,
        "--block-size": BLOCK,
        "--num-gpu-blocks-override": held * PROMPT_TOKENS // BLOCK,
        # Preprocessed images are kept as well; a real run has too many of them for that, as for the KV cache.
        "--mm-processor-cache-gb": 0,
    }
    words = (word for pair in args.items() for word in map(str, pair))
    return ServeConfig(model=folder, port=port, vllm_args=(*words, "--enable-prompt-tokens-details"))


def show(order: str, m: Measured) -> None:
    print(
        f"| {order} | {m.wall_s:.1f} | {m.cpu_s:.1f} | {m.calls} | {m.prompt_tokens / m.calls:.0f} | "
        f"{m.hits / m.queries:.0%} | {m.cached_tokens / m.prompt_tokens:.0%} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=48, help="for each order")
    parser.add_argument("--in-flight", type=int, default=12, help="images at the same time, in both orders")
    parser.add_argument("--repeats", type=int, choices=ROUNDS, default=3)
    args = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("skipped: vLLM is not installed in this environment")
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as plugin:
        letters = save_model(Path(folder))
        config = serve_config(folder, args.images, args.in_flight)
        own = serve_environment() | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path(plugin)}
        with running(serve_command(config), config.url, environment=own, timeout_s=600) as server:

            def take(pictures: Pictures, order: str, in_flight: int) -> Measured:
                return asyncio.run(
                    measure(config.url, server.pid, folder, letters, pictures, order, in_flight)
                )

            take(Pictures(4, seed=10**6), "image_by_image", 4)  # warm-up
            print(
                "| order | wall s | server CPU s | calls | prompt tokens a call | prefix-cache hits | as replies say |"
            )
            print("|---|---|---|---|---|---|---|")
            took: dict[str, list[Measured]] = {"image_by_image": [], "stage_by_stage": []}
            for repeat in range(args.repeats):
                for place, order in enumerate(sorted(took, reverse=repeat % 2 == 1)):
                    pictures = Pictures(args.images, seed=2 * repeat + place)
                    took[order].append(take(pictures, order, args.in_flight))
                    show(order.replace("_", " "), took[order][-1])
    print()
    for name, what in (("wall_s", "time"), ("cpu_s", "processor time of the server")):
        first, other = ([getattr(measured, name) for measured in each] for each in took.values())
        low, middle, high = interval([b / a for a, b in zip(first, other, strict=True)])
        print(f"stage by stage takes {middle:.2f} times the {what} (95 % interval {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
