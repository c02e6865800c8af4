"""Memory of tag and plan: made-up tagged samples through the passes, a process of its own for each size.

    python benchmarks/memory.py                          10k, 100k and 1M images, default tree
    python benchmarks/memory.py --images 1000000 --folder /data/scratch

Three steps for each size, each in a process of its own, with seconds and highest resident memory: `tag` makes the
tagged samples (12 tags of the general vocabulary each, some more common than others) and commits them as the pass of
that name would; `choose` is what the driver of pass `plan` does over the whole set; `plan` is the whole pass, on one
worker in the same process, and the checks of the ledger. Run again with the same folder, it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate

from infinity_mm.record import Emitted, ImageRef, Sample, Tag, digest, settle
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import PassWorker, Unit, UnitResult
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.taxonomy.plan_pass import PlanConfig, PlanPass
from infinity_mm.taxonomy.vocabulary import load_vocabulary

PER_UNIT, TAGS = 256, 12
MB = 1 << 20
STEPS = ("tag", "choose", "plan")
CONFIG = PlanConfig(tree="default", seeds="tree", min_fit=0.3)


@dataclass(frozen=True, kw_only=True)
class MadeUpTags:
    """Stands for the passes before: images with tags, from their numbers alone."""

    num_images: int
    name: str = "tag"

    def fingerprint(self) -> str:
        return str(self.num_images)

    def units(self, run: Run) -> Sequence[Unit]:
        starts = range(0, self.num_images, PER_UNIT)
        return [Unit(id=f"{n:05d}", payload=start) for n, start in enumerate(starts)]

    def open(self, run: Run) -> AbstractAsyncContextManager[PassWorker]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[PassWorker]:
        yield MadeUpWorker(self)


class MadeUpWorker:
    def __init__(self, pass_: MadeUpTags) -> None:
        self._pass = pass_
        self._vocabulary = load_vocabulary("general")
        self._weights = list(accumulate(1 / (n + 10) for n in range(len(self._vocabulary))))

    async def run(self, unit: Unit) -> UnitResult:
        return await asyncio.to_thread(self._work, unit)

    def _work(self, unit: Unit) -> UnitResult:
        stop = min(unit.payload + PER_UNIT, self._pass.num_images)
        samples = [self._sample(number) for number in range(unit.payload, stop)]
        ids = [sample.id for sample in samples]
        fates = settle("tag", ids, [Emitted(sample=sample) for sample in samples])
        return UnitResult(input_ids=ids, samples=samples, fates=fates)

    def _sample(self, number: int) -> Sample:
        sha256 = digest("image", str(number))
        rng = random.Random(number)
        names = dict.fromkeys(rng.choices(self._vocabulary, cum_weights=self._weights, k=TAGS))
        tags = tuple(Tag(name=name, score=round(rng.uniform(0.5, 1), 4)) for name in names)
        image = ImageRef(sha256=sha256, uri=f"/images/{number}.jpg", width=640, height=480)
        return Sample(id=sha256[:16], images=(image,), tags=tags)


def work(folder: str, num_images: int, step: str) -> None:
    """One process's part."""
    tag, plan = MadeUpTags(num_images=num_images), PlanPass(config=CONFIG, seed=0)
    run = Run(f"{folder}/{num_images}")
    before, start = _peak_mb(), time.monotonic()
    match step:
        case "tag":
            run_passes([tag], run, LocalExecutor())
        case "choose":
            plan.units(run)
        case _:
            run_passes([tag, plan], run, LocalExecutor())
    seconds = time.monotonic() - start
    print(
        f"{num_images:>10,}  {step:<6} {seconds:>9.1f} s {before:>8.0f} MB {_peak_mb():>8.0f} MB", flush=True
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", help="where the runs go; default: a temporary folder")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        work(args.folder, args.images[0], args.step)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'images':>10}  {'step':<6} {'':>11} {'at start':>11} {'highest':>11}", flush=True)
        for num_images in args.images:
            for step in STEPS:
                command = [sys.executable, __file__, "--images", str(num_images), "--step", step]
                subprocess.run([*command, "--folder", args.folder or folder], check=True)


if __name__ == "__main__":
    main()
