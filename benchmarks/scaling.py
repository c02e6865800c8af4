"""Scaling of a run: throughput with 1, 2 and 4 servers, and memory with the number of images.

    python benchmarks/scaling.py [--replicas 1 2 4] [--images 1000 10000 100000] [--rounds 3]

*Replicas* are stub servers that work eight calls at once and take 50 ms for each: one gives 160 replies a second and
no more. The run asks them through `replicas` of its engine. *Memory* is the largest resident set of the driver and of
the one Ray worker it has, sampled from outside; most images cost one call. Samples have no
picture, so that what is measured is the machinery.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import psutil
from saturation import SeedPass
from stub_server import Service, StubServer, completion, http

from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.runtime.executors import ExecutorConfig, make_executor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.synth.styles import StylesConfig

PLACES, DELAY_S = 8, 0.05
SAMPLES = 200
"""For the throughput: eight calls each."""
STAGES = ("ask", "styles", "answer", "merge")


class Terse(Service):
    """Finds something to ask about in one picture of eight, so that most images cost one call."""

    def answer(self, body: bytes) -> bytes | None:
        """A question or an answer, or NONE."""
        is_ask = b"Write one question" in body
        return _NONE if is_ask and self.served % 8 else super().answer(body)


_NONE = http(completion("NONE"))


def journeys(
    urls: Sequence[str], seeds: SeedPass, folder: str, *, in_flight: int, executor: ExecutorConfig
) -> float:
    """Seconds in the pass `journeys`, its commits included."""
    config = JourneyConfig(stages=STAGES, styles=StylesConfig(names=("short",)))
    teacher = OpenAISpec(
        base_url=urls[0], replicas=tuple(urls[1:]), model="stub", revision="1", max_in_flight=in_flight
    )
    run = Run(folder)
    run.start({}, seed=0)
    with make_executor(executor) as workers:
        run_passes([seeds], run, workers)
        start = time.perf_counter()
        run_passes([seeds, JourneyPass(config=config, teacher=teacher, tree="default")], run, workers)
        return time.perf_counter() - start


def throughput(num_replicas: int) -> float:
    """Replies a second of one driver with so many servers."""
    with ExitStack() as stack:
        places = [StubServer(Service(delay_s=DELAY_S, places=PLACES)) for _ in range(num_replicas)]
        urls = [stack.enter_context(server).url for server in places]
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        seeds = SeedPass(number=SAMPLES * num_replicas)
        seconds = journeys(urls, seeds, folder, in_flight=2 * PLACES, executor=ExecutorConfig())
        served = sum(server.tell("counts")[0] for server in places)
    return served / seconds


def memory(num_images: int) -> tuple[float, float, float]:
    """Seconds, and the largest resident sets in MB: of the driver, of its worker."""
    with StubServer(Terse(delay_s=0.01)) as server, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--live", server.url, str(num_images), folder]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process, most = psutil.Process(driver.pid), [0, 0]
        while driver.poll() is None:
            with suppress(psutil.Error):
                most[0] = max(most[0], process.memory_info().rss)
                workers = [
                    p for p in process.children(recursive=True) if "_Actor" in "".join(p.cmdline()[:1])
                ]
                most[1] = max([most[1], *(worker.memory_info().rss for worker in workers)])
            time.sleep(0.1)
        assert driver.stdout is not None
        said = driver.stdout.read()
    if driver.returncode:
        raise SystemExit(driver.returncode)
    return float(said), most[0] / 2**20, most[1] / 2**20


def live(url: str, num_images: str, folder: str) -> None:
    """In a process of its own."""
    seeds = SeedPass(number=int(num_images), questions=1)
    print(journeys([url], seeds, folder, in_flight=64, executor=ExecutorConfig(kind="ray")))


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--live", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.live:
        live(*args.live)
        return
    if args.replicas:
        print(f"{PLACES} calls at once and {1000 * DELAY_S:.0f} ms a call for each server\n")
        print("| servers | replies/s (median) | all | of linear | of what the servers can give |")
        print("|---|---|---|---|---|", flush=True)
    found: dict[int, list[float]] = {number: [] for number in args.replicas}
    for _ in range(args.rounds):
        for number in args.replicas:
            found[number].append(throughput(number))
    for number, rates in found.items():
        rate, first = statistics.median(rates), statistics.median(found[args.replicas[0]])
        linear = rate / first * args.replicas[0] / number
        every = ", ".join(f"{r:.0f}" for r in rates)
        print(f"| {number} | {rate:.0f} | {every} | {linear:.0%} | {rate * DELAY_S / PLACES / number:.0%} |")
    if args.images:
        print("\n| images | s | driver, MB | worker, MB |\n|---|---|---|---|", flush=True)
    for number in args.images:
        seconds, driver, worker = memory(number)
        print(f"| {number:,} | {seconds:.0f} | {driver:.0f} | {worker:.0f} |", flush=True)


if __name__ == "__main__":
    main()
