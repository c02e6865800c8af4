"""How near a synthesis run comes to a client that does nothing but ask: requests a second against a server with a
fixed latency.

    python benchmarks/saturation.py --requests 2000 --rounds 5
    python benchmarks/saturation.py --requests 2000 --rounds 3 --peer datatrove=/path/to/venv/bin/python

The server runs in a process of its own, answers after 50 ms, and counts. *Bare* is aiohttp with 64 calls in flight,
which keeps nothing. *Ours* is the pass of a real run (`JourneyPass`: stages ask, styles, answer, merge on pictureless
samples) with its journal, ledger, manifest and resume. Peers run in their own environments (`saturation_peers.py`).
Rounds are interleaved; every run of ours begins in an empty directory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from stub_server import Service, StubServer

from infinity_mm.engines.base import Request
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.engines.openai_wire import chat_payload
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Emitted, Sample, canonical_json, settle
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.storage.journal import Journal
from infinity_mm.synth.exchange import turns_for
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.synth.styles import StylesConfig
from infinity_mm.taxonomy.plan_pass import PLAN_FILE

QUESTIONS = 4
"""For one image: each is asked for, then answered."""
CALLS_PER_SAMPLE = 2 * QUESTIONS
LEAF = "fine_single/attribute/color"


def bodies(number: int) -> list[bytes]:
    """What ours sends, in kind and size."""
    prompts = PromptSet.load("default")
    made = []
    for i in range(number):
        prompt = prompts.render("ask", type=LEAF, example_1=f"What color is {i}?", example_2="Is it red?")
        sample = Sample(id=str(i), images=())
        request = Request(
            turns=turns_for(sample, prompt, prompts.system), max_new_tokens=96, temperature=0.7, seed=i
        )
        payload = chat_payload(request, [], model="stub", choice_field=None, schema_field=None, extra_body={})
        made.append(json.dumps(payload).encode())
    return made


async def bare(url: str, requests: Sequence[bytes], in_flight: int) -> int:
    """As many workers as calls in flight, one queue, nothing kept but a count."""
    left, answered = iter(requests), 0
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            nonlocal answered
            for body in left:
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                    # Null where a model's first token was its last.
                    answered += "content" in (await response.json())["choices"][0]["message"]

        await asyncio.gather(*(work() for _ in range(in_flight)))
    return answered


@dataclass(frozen=True, kw_only=True)
class SeedPass:
    """Samples and plan out of nothing, in the place of the passes before the journeys."""

    number: int
    questions: int = QUESTIONS
    name: str = "plan"

    def fingerprint(self) -> str:
        return f"seed {self.number} {self.questions}"

    def units(self, run: Run) -> Sequence[Unit]:
        return [Unit(id="00000", payload=[self.number, self.questions])]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[PassWorker]:
        yield _Seed()


class _Seed:
    async def run(self, unit: Unit) -> UnitResult:
        num_samples, questions = unit.payload
        samples = [Sample(id=f"s{i:06d}", images=()) for i in range(num_samples)]
        plan = {
            sample.id: [
                {"type": LEAF, "examples": [f"What color is {sample.id}?", f"Is it {number}?"]}
                for number in range(questions)
            ]
            for sample in samples
        }
        fates = settle("plan", [s.id for s in samples], [Emitted(sample=s) for s in samples])
        ids = [sample.id for sample in samples]
        files = {PLAN_FILE: canonical_json(plan).encode()}
        return UnitResult(input_ids=ids, samples=samples, fates=fates, files=files)


def ours(url: str, number: int, in_flight: int, folder: str) -> tuple[float, float]:
    """Seconds of wall and of processor time in the pass `journeys`, its commits included."""
    config = JourneyConfig(stages=("ask", "styles", "answer", "merge"), styles=StylesConfig(names=("short",)))
    teacher = OpenAISpec(base_url=url, model="stub", revision="1", max_in_flight=in_flight)
    journeys = JourneyPass(config=config, teacher=teacher, tree="default")
    run = Run(folder)
    run.start({}, seed=0)
    seeds = SeedPass(number=number // CALLS_PER_SAMPLE)
    run_passes([seeds], run, LocalExecutor())
    wall, cpu = time.perf_counter(), time.process_time()
    run_passes([seeds, journeys], run, LocalExecutor())
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    kept = len(Journal(run.path("journal"), "reader"))
    out = run.manifest("journeys")
    if kept != number or out is None or out.totals["out"] != number // CALLS_PER_SAMPLE:
        raise SystemExit(f"{kept} replies in the journal, {out and out.totals}")
    return seconds


def peer(python: str, name: str, url: str, number: int, in_flight: int) -> float:
    """Seconds of wall as the peer's own process measures them, its imports left out."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("saturation_peers.py")
        command = [python, str(script), name, url, str(number), str(in_flight)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peer", action="append", default=[], help="NAME=PYTHON of an environment that has it"
    )
    args = parser.parse_args()
    with StubServer(Service()) as server:
        race_all(args, server)


def race_all(args: argparse.Namespace, server: StubServer) -> None:
    requests, url = bodies(args.requests), server.url
    walls: dict[str, list[float]] = {}
    notes: dict[str, str] = {}

    def race(name: str, run: Callable[[], tuple[float, float | None]]) -> None:
        wall, cpu = run()
        served, peak = server.tell("counts")
        walls.setdefault(name, []).append(wall)
        used = "" if cpu is None else f", {1e6 * cpu / args.requests:.0f} us of processor time a request"
        notes[name] = f"{served:,} requests seen, most in flight {peak}{used}"

    def run_bare() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        answered = asyncio.run(bare(url, requests, args.in_flight))
        assert answered == args.requests
        return time.perf_counter() - wall, time.process_time() - cpu

    def run_ours() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            return ours(url, args.requests, args.in_flight, folder)

    for number in range(args.rounds):
        race("bare aiohttp", run_bare)
        race("ours", run_ours)
        for named in args.peer:
            name, _, python = named.partition("=")
            race(name, lambda n=name, p=python: (peer(p, n, url, args.requests, args.in_flight), None))
        latest = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in walls.items())
        print(f"round {number + 1} of {args.rounds}: {latest}", file=sys.stderr, flush=True)
    print(f"{args.requests:,} requests, {args.in_flight} in flight, 50 ms each\n")
    print("| | s (median) | s (all) | requests/s | against bare | |\n|---|---|---|---|---|---|")
    for name, seconds in walls.items():
        middle = statistics.median(seconds)
        every = ", ".join(f"{s:.2f}" for s in seconds)
        ratio = statistics.median(s / b for s, b in zip(seconds, walls["bare aiohttp"], strict=True))
        print(
            f"| {name} | {middle:.2f} | {every} | {args.requests / middle:.0f} | {ratio:.2f} | {notes[name]} |"
        )
    print(f"\nThe latency alone allows {args.in_flight / Service().delay_s:.0f} requests a second.")


if __name__ == "__main__":
    main()
