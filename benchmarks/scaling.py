"""Scaling of a run: throughput with 1, 2 and 4 servers, and memory with the number of images.

    python benchmarks/scaling.py [--replicas 1 2 4] [--rounds 3] [--images 1000 10000 100000] [--dry 1000000]

*Replicas* are stub servers that work eight calls at once and take 50 ms for each: one gives 160 replies a second and
no more. The run asks them through `replicas` of its engine, on samples without a picture, so that what is measured is
the machinery.

*Memory* is that of a whole run, from tars of tiny pictures, no two alike, to the published files and the
summary: passes read, unique, tag, plan, journeys, dedup and publish. Printed are the highest resident sets of the
driver and of its Ray worker. `--images` asks a stub server that finds something to ask about in one picture of eight;
`--dry` asks nobody (`journal: simulate`).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import yaml
from saturation import SeedPass
from stub_server import Service, StubServer, completion, http

from infinity_mm.config import load_config
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.run import run_synthesis
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.synth.styles import StylesConfig

PLACES, DELAY_S = 8, 0.05
SAMPLES = 200
"""For the throughput: eight calls each."""
STAGES = ("ask", "styles", "answer", "merge")
SIDE_PX, PER_TAR = 16, 10_000


class Terse(Service):
    """Finds something to ask about in one picture of eight, so that most images cost one call."""

    def answer(self, body: bytes) -> bytes | None:
        """A question or an answer, or NONE."""
        is_ask = b"Write one question" in body
        return _NONE if is_ask and self.served % 8 else super().answer(body)


_NONE = http(completion("NONE"))


def journeys(urls: Sequence[str], seeds: SeedPass, folder: str, *, in_flight: int) -> float:
    """Seconds in the pass `journeys`, its commits included."""
    config = JourneyConfig(stages=STAGES, styles=StylesConfig(names=("short",)))
    teacher = OpenAISpec(
        base_url=urls[0], replicas=tuple(urls[1:]), model="stub", revision="1", max_in_flight=in_flight
    )
    run = Run(folder)
    run.start({}, seed=0)
    run_passes([seeds], run, LocalExecutor())
    start = time.perf_counter()
    run_passes([seeds, JourneyPass(config=config, teacher=teacher, tree="default")], run, LocalExecutor())
    return time.perf_counter() - start


def throughput(num_replicas: int) -> float:
    """Replies a second of one driver with so many servers."""
    with ExitStack() as stack:
        places = [StubServer(Service(delay_s=DELAY_S, places=PLACES)) for _ in range(num_replicas)]
        urls = [stack.enter_context(server).url for server in places]
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        seeds = SeedPass(number=SAMPLES * num_replicas)
        seconds = journeys(urls, seeds, folder, in_flight=2 * PLACES)
        served = sum(server.tell("counts")[0] for server in places)
    return served / seconds


def memory(num_images: int, *, is_dry: bool) -> str:
    """A row of the table: seconds, those of each pass, and the highest resident sets of driver and worker."""
    with StubServer(Terse(delay_s=0.01)) as server, tempfile.TemporaryDirectory() as folder:
        write_tars(f"{folder}/tars", num_images)
        teacher = {"kind": "openai", "base_url": server.url, "model": "stub", "revision": "1"}
        settings = {
            "name": "scaling",
            "run_dir": f"{folder}/run",
            "read": {
                "sources": [{"kind": "webdataset", "path": f"{folder}/tars"}],
                "min_side_px": SIDE_PX,
            },
            "tagger": {"model": "none"},
            "plan": {"tree": "any_picture", "seeds": "tree", "questions_per_image": 1},
            "engines": {"teacher": teacher},
            "stages": list(STAGES),
            "styles": {"names": ["short"], "suit_the_type": False},
            "journal": "simulate" if is_dry else "record",
            "executor": {"kind": "ray"},
        }
        file = Path(folder, "scaling.yaml")
        file.write_text(yaml.safe_dump(settings))
        driver = subprocess.Popen(
            [sys.executable, __file__, "--live", str(file)], stdout=subprocess.PIPE, text=True
        )
        high = [0, 0]
        while driver.poll() is None:
            with suppress(psutil.Error):
                process = psutil.Process(driver.pid)
                actors = [p for p in process.children(recursive=True) if p.name().startswith("ray::_Act")]
                high[0] = max(high[0], highest_mb(process))
                high[1] = max([high[1], *map(highest_mb, actors)])
            time.sleep(0.2)
        assert driver.stdout is not None
        said = driver.stdout.read()
    if driver.returncode:
        raise SystemExit(driver.returncode)
    done = json.loads(said)
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in done["phase_s"].items())
    each = 1000 * done["wall_s"] / num_images
    kind = "dry" if is_dry else "asked"
    return f"| {num_images:,} {kind} | {done['wall_s']:.0f} | {each:.1f} | {high[0]} | {high[1]} | {phases} |"


def highest_mb(process: psutil.Process) -> int:
    """The most that a process ever had resident, by the kernel's own count."""
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def write_tars(folder: str, number: int) -> None:
    """Where images are read in place: kept one by one in the run directory, their syncs would be what is measured."""
    Path(folder).mkdir()
    for start in range(0, number, PER_TAR):
        with tarfile.open(f"{folder}/{start // PER_TAR:05d}.tar", "w") as tar:
            for n in range(start, min(start + PER_TAR, number)):
                member = tarfile.TarInfo(f"{n:07d}.png")
                data = png(n)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def png(number: int) -> bytes:
    """Gray noise, `SIDE_PX` squared; by hand, since an encoder takes longer than the rest."""
    pixels = random.Random(number).randbytes(SIDE_PX * SIDE_PX)
    lines = b"".join(b"\0" + pixels[y * SIDE_PX : (y + 1) * SIDE_PX] for y in range(SIDE_PX))
    head = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines, 0)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def live(file: str) -> None:
    """In a process of its own."""
    summary = run_synthesis(load_config(SynthConfig, file))
    print(json.dumps({"wall_s": summary.wall_s, "phase_s": summary.phase_s}))


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--dry", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--live", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.live:
        live(args.live)
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
    if args.images or args.dry:
        print(
            "\n| images | s | s per 1,000 | driver, MB | worker, MB | s of each pass |\n|---|---|---|---|---|---|"
        )
    for number, is_dry in [*((n, False) for n in args.images), *((n, True) for n in args.dry)]:
        print(memory(number, is_dry=is_dry), flush=True)


if __name__ == "__main__":
    main()
