"""The whole loop on the wind tunnel, measured: images -> data on Ray -> five students -> accuracy against the truth.

synthesis (the passes of pipelines/synth.py) --scoring--> what the policy was worth
                                             --students--> what the data was worth
--> summary.json, report/index.html, one table
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.table import Table

from infinity_mm.config import build
from infinity_mm.engines.model_files import model_folder
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.eval.memory_images import MemoryImages
from infinity_mm.eval.windtunnel import evaluate_windtunnel
from infinity_mm.report.run_report import write_report
from infinity_mm.runtime.progress import show_progress
from infinity_mm.runtime.run import Run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.synth.summary import Summary
from infinity_mm.windtunnel.scoring import graded_pairs, score_run
from infinity_mm.windtunnel.students import ARMS, StudentRecipe, train_student, write_arms

SUMMARY_FILE = "summary.json"
EVAL_SEED = 1_000_003
"""Added to the demo's seed for the world that students are evaluated on."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's dials; everything else is in `synth_config` and `students.train_student`."""

    run_dir: str
    """Absolute path; the same folder again goes on where it was."""
    num_images: int = 200
    """Held-out-world images to synthesise from."""
    seed: int = 0
    """Seed of worlds, plan, sampling and training."""
    num_workers: int = 2
    """Ray workers; 0 runs in this process."""
    teacher: str = "nano-teacher"
    """Model that asks, checks, answers, judges and rewrites."""
    base: str = "nano-base"
    """Model that students start from."""
    student_steps: int = 100
    """Optimiser steps of every arm."""
    eval_images: int = 160
    """Held-out images that students are evaluated on."""
    eval_questions_per_image: int = 3


def synth_config(config: DemoConfig) -> SynthConfig:
    """The run that `configs/synth/windtunnel.yaml` describes, on the demo's worlds."""
    cpus = max(1, (os.cpu_count() or 1) // max(1, config.num_workers))
    executor: dict[str, Any] = {"kind": "local"}
    if config.num_workers:
        executor = {"kind": "ray", "num_workers": config.num_workers, "cpus_per_worker": cpus}
    source = {
        "kind": "windtunnel",
        "num_images": config.num_images,
        "world_seed": config.seed + 1,
        "split": "held_out",
    }
    return build(
        SynthConfig,
        {
            "name": "demo",
            "run_dir": config.run_dir,
            "seed": config.seed,
            "read": {"sources": [source], "images_per_unit": 64},
            "tagger": {"model": "nano-clip", "vocabulary": "windtunnel"},
            "plan": {"tree": "windtunnel", "seeds": "windtunnel", "questions_per_image": 2},
            "engines": {"teacher": {"kind": "transformers", "model": config.teacher}},
            "prompts": "nano",
            "ask": {
                "temperature": 0.7,
                "max_new_tokens": 48,
                "min_chars": 4,
                "drop_copied_examples": False,
                "describe_type": False,
            },
            "answer": {"max_new_tokens": {"short": 24, "brief": 64, "detailed": 160}},
            "policy": {"keep_at": 8, "rewrite_at": 2, "by": "expected"},
            "rewrite": {"max_new_tokens": 160},
            "images_per_shard": 25,
            "images_in_flight": 64,
            "executor": executor,
        },
        where="the demo's configuration",
    )


def run_demo(config: DemoConfig, *, console: Console) -> dict[str, Any]:
    """Run or resume the demo; returns what is written to `summary.json`."""
    start = time.monotonic()
    phase_s: dict[str, float] = {}
    run_dir = Path(config.run_dir)

    with _phase("synthesis", phase_s, console), show_progress(cast(TextIO, console.file)) as progress:
        synthesis = run_synthesis(synth_config(config), progress)
    run = Run(config.run_dir)
    with _phase("scoring", phase_s, console):
        pairs = graded_pairs(run)
        scores = score_run(pairs)
        arms = run_dir / "experiment"
        pairs_per_arm = write_arms(arms, pairs, run.images, prompts="nano")

    recipe = StudentRecipe(
        base=model_folder(config.base, None), steps=config.student_steps, seed=config.seed, threads=None
    )
    seen = frozenset(pair.scene.content_hash() for pair in pairs)
    accuracy: dict[str, float | None] = dict.fromkeys(("untrained", *ARMS))  # None: the arm had no data
    models = {"untrained": recipe.base}
    with _phase("training", phase_s, console):
        for arm in ARMS:
            data = run_dir / "experiment" / arm / "train.parquet"
            source = _published(synthesis) if arm == "filtered" else str(data)
            console.print(f"  student on {arm}: {pairs_per_arm[arm]} pairs, {recipe.steps} steps")
            if not pairs_per_arm[arm]:
                continue
            models[arm] = train_student(source, arms / arm / "student", recipe)
    with _phase("evaluation", phase_s, console):
        for arm, folder in models.items():
            result = evaluate_windtunnel(
                TransformersSpec(model=str(folder)),
                MemoryImages(),
                world_seed=config.seed + EVAL_SEED,
                num_images=config.eval_images,
                questions_per_image=config.eval_questions_per_image,
                exclude=seen,
                blank_only=arm == "blank_image",
            )
            accuracy[arm] = result["accuracy_blank_image" if arm == "blank_image" else "accuracy"]

    summary = {
        **summarise_synthesis(synthesis),
        **scores,
        "student_accuracy": accuracy,
        "student_pairs": pairs_per_arm,
        "student_steps": recipe.steps,
        "wall_s": round(time.monotonic() - start, 1),
        "phase_s": phase_s,
        "pass_s": synthesis.phase_s,
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (run_dir / SUMMARY_FILE).write_text(text, encoding="utf-8")
    with console.status("writing the report"):
        summary["report"] = write_report(config.run_dir).path
    return summary


def summarise_synthesis(synthesis: Summary) -> dict[str, Any]:
    """The part of the summary that comes from the passes."""
    return {
        "images": synthesis.images_read,
        "questions_asked": synthesis.fates["ask"].get("continued", 0),
        "calls": sum(synthesis.calls.values()),
        "calls_by_stage": synthesis.calls,
        "calls_from_journal": synthesis.calls_from_journal,
        "kept": synthesis.pairs_kept,
        "conversations": synthesis.conversations,
        "dropped": synthesis.dropped,
        "quarantined": synthesis.quarantined,
        "fates": synthesis.fates,
        "types_covered": len(synthesis.types_covered),
    }


def _published(synthesis: Summary) -> str:
    """Folder of the published Parquet files."""
    return str(Path(synthesis.published[0]).parent)


@contextmanager
def _phase(name: str, phase_s: dict[str, float], console: Console) -> Iterator[None]:
    start = time.monotonic()
    console.print(f"[bold]{name}[/]")
    yield
    phase_s[name] = round(time.monotonic() - start, 1)
    console.print(f"  {phase_s[name]:.0f} s")


def print_demo(summary: dict[str, Any], console: Console) -> None:
    """The table of the demo."""
    console.print(_fates_table(summary["fates"]))
    rewrites = summary["rewrites"]
    console.print(
        _rows_table(
            "Data against the truth",
            [
                ("images", summary["images"]),
                ("questions asked", summary["questions_asked"]),
                ("model calls", summary["calls"]),
                ("instruction types covered", summary["types_covered"]),
                ("answers right before the policy", f"{summary['answer_accuracy_before']:.1%}"),
                ("answers right after the policy", f"{summary['answer_accuracy_after']:.1%}"),
                ("right answers kept", f"{summary['right_answers_kept_share']:.1%}"),
                ("rewrites attempted", rewrites["attempted"]),
                ("  repaired / broken", f"{rewrites['repaired']} / {rewrites['broken']}"),
            ],
        )
    )
    steps = summary["student_steps"]
    accuracy = [
        (name, "no data" if value is None else f"{value:.1%}")
        for name, value in summary["student_accuracy"].items()
    ]
    console.print(_rows_table(f"Students on held-out scenes, {steps} steps from nano-base", accuracy))
    journeys_s = max(1e-9, summary["pass_s"]["journeys"])
    asked = summary["calls"] - summary["calls_from_journal"]
    speed = [
        ("calls a second", f"{asked / journeys_s:.1f}"),
        ("images a second", f"{summary['images'] / journeys_s:.2f}"),
        *((f"{name}, s", f"{seconds:.0f}") for name, seconds in summary["phase_s"].items()),
        ("in all, s", f"{summary['wall_s']:.0f}"),
    ]
    console.print(_rows_table("Time", speed))
    console.print(f"report: {summary['report']}", highlight=False)


def _fates_table(fates: dict[str, dict[str, int]]) -> Table:
    names = ("continued", "expanded", "merged", "dropped", "quarantined")
    table = Table(title="Fates per stage")
    table.add_column("stage")
    for name in names:
        table.add_column(name, justify="right")
    for stage, counts in fates.items():
        if counts:
            table.add_row(stage, *(str(counts[name]) if name in counts else "" for name in names))
    return table


def _rows_table(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, str(value))
    return table
