"""What was predicted beside what was measured, when a run ends.

RUN/prediction.json + figures of the summary --beside--> figure: low, expected, high, measured
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from infinity_mm.runtime.run import Run
from infinity_mm.storage import files

PREDICTION_FILE = "prediction.json"
MEASURED = ("calls", "prompt_tokens", "completion_tokens", "pairs_kept")
"""Figures that are predicted and that a run's summary has too."""


def beside(run: Run, config: str, measured: Mapping[str, float]) -> dict[str, dict[str, float]] | None:
    """None without a prediction for this configuration, which is given as its digest."""
    try:
        found = json.loads(files.read(run.path(PREDICTION_FILE)))
    except FileNotFoundError:
        return None
    if found["config"] != config:
        return None
    return {name: {**found["totals"][name], "measured": measured[name]} for name in MEASURED}
