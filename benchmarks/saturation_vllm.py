"""How near a synthesis run comes to a bare client where a real server is the slow part: vLLM on a CPU.

    python benchmarks/saturation_vllm.py --server-python .venv-serving/bin/python --images 48 --rounds 5

One vLLM server with nano-teacher on its own cores, the clients on others. *Ours* is the pass `journeys` of a run on
drawn scenes, all stages of `configs/synth/windtunnel.yaml`, with journal, ledger and manifest. *Bare* is aiohttp, which
keeps nothing: it sends the very bodies that ours sent, in their order, with the concurrency that was best for it.
Which of the two begins alternates by round, the server's caches are emptied before each; the interval of the ratio is
Student's, over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
from interval import ROUNDS, interval
from saturation import bare
from vllm_plugin import ROOT, python_path

from infinity_mm.config import load_config
from infinity_mm.runtime.executors import make_executor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.serving.server import running
from infinity_mm.storage.journal import Journal
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import described

MAX_TOKENS = 1024
"""Of a prompt and its reply; the longest here has about half."""


def synthesis(url: str, num_images: int, run_dir: str, in_flight: int) -> SynthConfig:
    """The windtunnel's configuration, with a server as its teacher."""
    overrides = [
        f"run_dir={run_dir}",
        f"read.sources=[{{kind: windtunnel, num_images: {num_images}, world_seed: 1, split: held_out}}]",
        f"engines.teacher={{kind: openai, base_url: {url}/v1, model: nano-teacher, revision: '1', "
        f"max_in_flight: {in_flight}, choice_field: structured_outputs}}",
        "images_per_shard=32",
        f"images_in_flight={2 * in_flight}",
        "check.min_probability=null",  # a server gives no probabilities of choices
    ]
    return load_config(SynthConfig, ROOT / "configs/synth/windtunnel.yaml", overrides)


def journeys(config: SynthConfig, *, only_before: bool = False) -> float:
    """Seconds in the pass `journeys`, the ones before it done already, or done now."""
    run = Run(config.run_dir)
    run.start(described(config), seed=config.seed)
    passes = config.passes()
    upto = [pass_.name for pass_ in passes].index("journeys")
    with make_executor(config.executor) as executor:
        run_passes(passes[:upto], run, executor)
        start = time.perf_counter()
        if not only_before:
            run_passes(passes[: upto + 1], run, executor)
        return time.perf_counter() - start


@contextmanager
def overheard(bodies: list[bytes]) -> Iterator[None]:
    """What the engine sends meanwhile."""
    post = aiohttp.ClientSession.post

    def listen(session: aiohttp.ClientSession, url: str, *, data: bytes | io.BytesIO, **rest: Any) -> Any:
        bodies.append(data if isinstance(data, bytes) else data.getvalue())
        return post(session, url, data=data, **rest)

    aiohttp.ClientSession.post = listen  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        aiohttp.ClientSession.post = post


def empty_caches(url: str) -> None:
    """Prefixes, encoder outputs and preprocessed images of the round before would make this one faster."""
    for cache in ("prefix", "mm", "encoder"):
        request = urllib.request.Request(f"{url}/reset_{cache}_cache", method="POST")
        with urllib.request.urlopen(request, timeout=60) as reply:
            said = reply.read()
        if said and not json.loads(said)["success"]:
            raise SystemExit(f"the server did not empty its {cache} cache")


def ask_bare(url: str, bodies: Sequence[bytes], in_flight: int) -> float:
    """Seconds for all of them."""
    empty_caches(url)
    start = time.perf_counter()
    asyncio.run(bare(f"{url}/v1", bodies, in_flight))
    return time.perf_counter() - start


def ask_ours(url: str, prepared: str, num_images: int, in_flight: int, num_requests: int) -> float:
    """Seconds of a run whose plan is there already and whose journal is empty."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = f"{folder}/run"
        shutil.copytree(prepared, run_dir)
        empty_caches(url)
        seconds = journeys(synthesis(url, num_images, run_dir, in_flight))
        kept = len(Journal(f"{run_dir}/journal", "reader"))
    if (
        abs(kept - num_requests) > num_requests // 10
    ):  # a server of floats may say another word, and lead elsewhere
        raise SystemExit(f"{kept} replies in the journal, {num_requests} requests the first time")
    return seconds * num_requests / kept


def server_command(python: str, port: int, cpus: str) -> list[str]:
    """`infinity-mm serve` in the environment that has vLLM."""
    serve = "from infinity_mm.cli import main; main()"
    vllm = ["--max-model-len", str(MAX_TOKENS), "--max-num-batched-tokens", str(64 * MAX_TOKENS)]
    return ["taskset", "-c", cpus, python, "-c", serve, "serve", "nano-teacher", "--port", str(port), *vllm]


def main() -> None:
    """Print the search for the best concurrency, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--server-python", help="of an environment with vLLM, as `make test-serving` makes one"
    )
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, choices=ROUNDS, default=5)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[4, 8, 16, 32, 64])
    parser.add_argument("--server-cpus", default="0")
    parser.add_argument("--client-cpus", default="1")
    args = parser.parse_args()
    if args.server_python is None:
        print("skipped: no --server-python")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = server_command(args.server_python, port, args.server_cpus)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        own = os.environ | {
            "PYTHONPATH": python_path(f"{folder}/plugin"),
            "VLLM_SERVER_DEV_MODE": "1",  # the reset of its caches is a developer's endpoint
            "VLLM_CPU_OMP_THREADS_BIND": args.server_cpus,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with running(command, url, environment=own, timeout_s=600):
            os.sched_setaffinity(0, {int(cpu) for cpu in args.client_cpus.split(",")})
            race(url, args, f"{folder}/prepared")


def race(url: str, args: argparse.Namespace, prepared: str) -> None:
    """Prepare, search, measure, print."""
    bodies: list[bytes] = []
    with overheard(bodies), tempfile.TemporaryDirectory() as folder:
        journeys(synthesis(url, args.images, f"{folder}/run", 64))
    ask_bare(url, bodies, 64)  # warm-up
    tried = [{n: ask_bare(url, bodies, n) for n in args.concurrency} for _ in range(2)]
    rates = {n: len(bodies) / min(walls[n] for walls in tried) for n in args.concurrency}
    best = max(rates, key=lambda n: rates[n])
    found = ", ".join(f"{rate:.1f} with {n} in flight" for n, rate in rates.items())
    print(f"{len(bodies):,} requests about {args.images} images", flush=True)
    print(f"Bare client, requests a second, the better of two: {found}", flush=True)
    journeys(synthesis(url, args.images, prepared, best), only_before=True)
    measure: dict[str, Callable[[], float]] = {
        "bare": lambda: ask_bare(url, bodies, best),
        "ours": lambda: ask_ours(url, prepared, args.images, best, len(bodies)),
    }
    walls: dict[str, list[float]] = {name: [] for name in measure}
    for number in range(args.rounds):
        for name in sorted(measure, reverse=number % 2 == 1):
            walls[name].append(measure[name]())
        print(
            f"round {number + 1}: {walls['bare'][-1]:.2f} s, {walls['ours'][-1]:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    print(f"\n| {best} in flight | s (median) | s (all) | requests/s |\n|---|---|---|---|")
    for name, seconds in walls.items():
        middle, every = statistics.median(seconds), ", ".join(f"{s:.2f}" for s in seconds)
        print(f"| {name} | {middle:.2f} | {every} | {len(bodies) / middle:.1f} |")
    low, middle, high = interval([b / o for b, o in zip(walls["bare"], walls["ours"], strict=True)])
    print(f"\nours reaches {middle:.1%} of the bare client's rate (95 % interval {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
