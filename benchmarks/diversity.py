"""How different the questions are that a tree of types gives, against a flat list of two types on the same images.

    python benchmarks/diversity.py --images 60 --per-image 2
    python benchmarks/diversity.py --count 1000000        memory and speed of counting questions over a set, no model

Both runs are the pipeline of configs/synth/windtunnel.yaml up to the questions, on the same held-out scenes, with as
many questions planned for each image. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from infinity_mm.config import load_config
from infinity_mm.dedup.counting import use_numbers
from infinity_mm.quality.diversity import Diversity, Gauge
from infinity_mm.runtime.run import Run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.journey_pass import read_pairs
from infinity_mm.synth.run import run_synthesis
from infinity_mm.taxonomy.tree import Tree

FLAT = """\
name: flat
extends: windtunnel
remove: [{removed}]
"""
KEPT = ("coarse/scene/image_kind", "logic/existence/text")
"""Asked of every kind of drawn image."""


def flat_tree(folder: Path, kept: tuple[str, ...]) -> str:
    """A file with two of the world's types."""
    removed = [path for path in Tree.load("windtunnel").leaves if path not in kept]
    file = folder / "flat.yaml"
    file.write_text(FLAT.format(removed=", ".join(removed)))
    return str(file)


def asked(folder: Path, tree: str, args: argparse.Namespace) -> tuple[dict[str, tuple[str, str]], int]:
    """Question id -> (type, question) of all that got as far as an answer, and how many were dropped as repeats."""
    source = f"{{kind: windtunnel, num_images: {args.images}, world_seed: {args.seed}, split: held_out}}"
    overrides = [
        f"run_dir={folder}",
        f"read.sources=[{source}]",
        f"plan={{tree: {tree}, seeds: windtunnel, questions_per_image: {args.per_image}}}",
        "stages=[ask, distinct, check, styles, answer, merge]",
        "styles={names: [short], suit_the_type: false}",
        f"engines={{teacher: {{kind: transformers, model: nano-teacher, threads: {args.threads}}}}}",
    ]
    summary = run_synthesis(load_config(SynthConfig, "configs/synth/windtunnel.yaml", overrides))
    run = Run(str(folder))
    manifest = run.manifest("journeys")
    assert manifest is not None
    pairs = [pair for unit in manifest.units for pair in read_pairs(run, "journeys", unit)]
    found = {pair.parents[0]: (pair.instruction_type or "", pair.question or "") for pair in pairs}
    return found, summary.dropped.get("distinct", {}).get("duplicate_question", 0)


def measured(questions: dict[str, tuple[str, str]], number: int) -> Diversity:
    """The figures of the same number of questions, or those of the larger set would look worse for its size."""
    gauge = Gauge()
    for id_ in random.Random(0).sample(sorted(questions), number):
        gauge.add(id_, *questions[id_])
    return gauge.read()


def compare(args: argparse.Namespace) -> None:
    """Both runs, then one row per figure."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = {"tree": "windtunnel", "two types": flat_tree(root, KEPT)}
        runs = {name: asked(root / name.replace(" ", "_"), tree, args) for name, tree in names.items()}
    number = min(len(questions) for questions, _ in runs.values())
    columns = {
        name: {"repeats dropped within an image": repeats, "questions kept": len(questions)}
        | asdict(measured(questions, number))
        for name, (questions, repeats) in runs.items()
    }
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in next(iter(columns.values())):
        print(f"| {row.replace('_', ' ')} | {' | '.join(str(column[row]) for column in columns.values())} |")


def count(number: int) -> None:
    """Made-up questions, a tenth of them repeated often."""

    def questions() -> Iterator[tuple[str, str]]:
        rng = random.Random(0)
        for n in range(number):
            thing = rng.randrange(20) if rng.random() < 0.1 else rng.randrange(number)
            yield f"{rng.getrandbits(64):016x}.q{n % 4}", f"What is written on sign number {thing}?"

    start = time.process_time()
    for _ in questions():
        pass
    making = time.process_time() - start
    start = time.process_time()
    numbers = use_numbers(questions())
    seconds = time.process_time() - start - making
    tracemalloc.start()
    use_numbers(questions())
    peak = tracemalloc.get_traced_memory()[1]
    print("| questions | repeated | CPU s | bytes a question at the peak |\n|---|---|---|---|")
    print(f"| {number:,} | {(numbers > 1).mean():.1%} | {seconds:.1f} | {peak / number:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--per-image", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=0)
    given = parser.parse_args()
    count(given.count) if given.count else compare(given)
