"""Run again what a run set aside for one reason, and nothing else, into a run directory of its own.

RUN/run.json + overrides --> SynthConfig --aside, journeys, dedup, publish--> rows that are added to those of RUN

No pair is in both: only samples that ended in RUN are taken, and each replay's conversations have ids of their own.
So the two data sets are used together, in any order. Repeats are looked for within each, not between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infinity_mm.config import build, to_plain
from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.runtime.events import Listener
from infinity_mm.runtime.executors import make_executor
from infinity_mm.runtime.ledger import fate_counts
from infinity_mm.runtime.passes import Pass
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.storage import files
from infinity_mm.synth.aside_pass import Aside, AsidePass, edition
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import SUMMARY_FILE, described, undescribed


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What came of it."""

    run_dir: str
    taken: int
    """Samples that had been set aside."""
    pairs_kept: int
    conversations: int
    """Published rows."""
    again: dict[str, int]
    """`stage: reason` -> samples that ended once more."""
    calls: int


def config_of(run_dir: str, overrides: Sequence[str] = ()) -> SynthConfig:
    """The configuration that a run was started with, changed by `key=value`."""
    try:
        plain = json.loads(files.read(Run(run_dir).path("run.json")))["config"]
    except FileNotFoundError as error:
        raise explain(
            what="there is no run.json", where=run_dir, fix="give the folder or URL of a run"
        ) from error
    return build(SynthConfig, undescribed(plain), overrides=overrides, where=f"run.json of {run_dir}")


def replay(
    aside: Aside, *, overrides: Sequence[str] = (), out: str | None = None, on_event: Listener | None = None
) -> Replayed:
    """Bring a replay to its published state; the same call again goes on where it was.

    `out`: its run directory; default: below the run, named by what is replayed and how.
    """
    source = Run(aside.run_dir)
    aside = replace(aside, run_dir=source.run_dir)
    name = digest(edition(aside), *overrides)[:8]
    config = config_of(
        source.run_dir, [*overrides, f"run_dir={out or source.path('replays', f'{aside.reason}-{name}')}"]
    )
    passes: list[Pass] = [
        AsidePass(aside=aside, config=config.journeys),
        *config.passes_from_journeys(after="aside", edition=edition(aside)),
    ]
    run = Run(config.run_dir)
    run.start(described(config) | {"replay": to_plain(aside)}, seed=config.seed)
    with make_executor(config.executor) as executor:
        run_passes(passes, run, executor, on_event, config.budget)
    found = _summed(run)
    files.write(run.path(SUMMARY_FILE), (json.dumps(_plain(found, aside), indent=2) + "\n").encode())
    return found


def _summed(run: Run) -> Replayed:
    totals = {}
    for name in ("aside", "journeys", "publish"):
        committed = run.manifest(name)
        assert committed is not None, "run_passes commits it"
        totals[name] = committed
    journeys = totals["journeys"]
    ends = ("dropped", "quarantined")
    return Replayed(
        run_dir=run.run_dir,
        taken=totals["aside"].totals["out"],
        pairs_kept=int(journeys.metrics.get("pairs", 0)),
        conversations=totals["publish"].totals["out"],
        again={
            f"{stage}: {reason}": number
            for stage, fate, reason, number in fate_counts(journeys.totals)
            if fate in ends
        },
        calls=int(sum(n for key, n in journeys.metrics.items() if key.startswith("calls."))),
    )


def _plain(found: Replayed, aside: Aside) -> dict[str, Any]:
    return to_plain(found) | {"replay": to_plain(aside)}
