"""Scaling of a run: throughput with 1, 2 and 4 servers, and the driver's memory with the number of images.

    python benchmarks/scaling.py [--replicas 1 2 4] [--images 1000 10000 100000] [--rounds 3]

*Replicas* are stub servers, each of which works so many calls at once and takes 50 ms for each, so that one is full; the
run has `replicas` in its engine and as many more calls in flight. *Memory* is the largest resident set of the process
that drives the passes and works them too (local executor), one call for each image, sampled from outside. Samples have
no picture, so that what is measured is the machinery.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
from saturation import CALLS_PER_SAMPLE, LEAF, SeedPass
from stub_server import Service, StubServer

from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.synth.journey_pass import JourneyPass
from infinity_mm.synth.stages import JourneyConfig
from infinity_mm.synth.styles import StylesConfig

PLACES, DELAY_S = 8, 0.05
"""Of one server: it gives 160 replies a second and no more."""


def journeys(urls: Sequence[str], number: int, folder: str, *, in_flight: int, questions: int) -> float:
    """Seconds in the pass `journeys`, its commits included."""
    config = JourneyConfig(
        stages=("ask", "merge") if questions == 0 else ("ask", "styles", "answer", "merge"),
        styles=StylesConfig(names=("short",)),
    )
    teacher = OpenAISpec(
        base_url=urls[0], replicas=tuple(urls[1:]), model="stub", revision="1", max_in_flight=in_flight
    )
    run = Run(folder)
    run.start({}, seed=0)
    seeds = SeedPass(number=number)
    run_passes([seeds], run, LocalExecutor())
    start = time.perf_counter()
    run_passes([seeds, JourneyPass(config=config, teacher=teacher, tree="default")], run, LocalExecutor())
    return time.perf_counter() - start
