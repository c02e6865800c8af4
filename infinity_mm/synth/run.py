"""Run a synthesis: the passes in order, and a summary beside them.

SynthConfig --passes--> run_passes(executor) --> Summary, run_dir/summary.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from infinity_mm.config import to_plain
from infinity_mm.planning.beside import beside
from infinity_mm.prompts import PromptSet
from infinity_mm.record import canonical_json, digest
from infinity_mm.runtime.events import Listener
from infinity_mm.runtime.executors import make_executor
from infinity_mm.runtime.run import EXECUTION_KEYS, Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.storage import files
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.journey_pass import EXECUTION
from infinity_mm.synth.stages import build_stages
from infinity_mm.synth.summary import Summary, summarise
from infinity_mm.taxonomy.tree import Tree

SUMMARY_FILE = "summary.json"


def run_synthesis(config: SynthConfig, on_event: Listener | None = None) -> Summary:
    """Bring a run to its published state; the same call again, after any kill, goes on where it was."""
    start = time.monotonic()
    # Before the first image is read: a wrong stage list or share must not show after an hour of tagging.
    tree = Tree.load(config.plan.tree)
    tree.shares(config.plan.shares)
    build_stages(config, tree, PromptSet.load(config.prompts))
    run = Run(config.run_dir)
    run.start(described(config), seed=config.seed)
    with make_executor(config.executor) as executor:
        done = run_passes(config.passes(), run, executor, on_event, config.budget)
    summary = summarise(
        run,
        name=config.name,
        stages=config.stages,
        wall_s=time.monotonic() - start,
        phase_s=done.phase_s,
    )
    figures = {
        "calls": sum(summary.calls.values()),
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "pairs_kept": summary.pairs_kept,
    }
    summary = replace(summary, predicted=beside(run, config_digest(config), figures))
    text = json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n"
    files.write(run.path(SUMMARY_FILE), text.encode())
    return summary


def described(config: SynthConfig) -> dict[str, Any]:
    """The configuration for run.json, with the version and hash of the tree it names.

    What does not decide the output lies under `executor`, where it may change.
    """
    plain = to_plain(config)
    how = {key: plain.pop(key) for key in sorted(EXECUTION)}
    tree = Tree.load(config.plan.tree)
    named = {"name": tree.name, "version": tree.version, "fingerprint": tree.fingerprint}
    return plain | {"tree": named, "executor": plain["executor"] | {"journeys": how}}


def undescribed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The plain configuration behind what `described` made; what was only told there is left out."""
    known = {f.name for f in fields(SynthConfig)}
    executor = dict(plain["executor"])
    how = executor.pop("journeys", {})
    return {key: value for key, value in plain.items() if key in known} | {"executor": executor} | how


def config_digest(config: SynthConfig) -> str:
    """Of all that decides what a run does; a prediction holds for a run with the same one."""
    plain = {key: value for key, value in described(config).items() if key not in EXECUTION_KEYS}
    return digest("plan", canonical_json(plain))[:16]
