"""From a sample to the prediction that is kept in the run directory.

Sample --predict--> Prediction --write_prediction--> RUN/prediction.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from infinity_mm.planning.beside import MEASURED, PREDICTION_FILE
from infinity_mm.planning.estimate import Cost, Interval, Sums
from infinity_mm.planning.gpus import Gpu, GpuTable, Size, size_of
from infinity_mm.planning.sample import Sample, engines_of, roles_of
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import config_digest


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is expected of a run."""

    config: str
    """Digest of the configuration it was made for."""
    is_measured: bool
    """Whether it comes from a probe; else every figure but the pairs is the most there can be."""
    num_sampled: int
    num_images: float
    """Images that will begin a journey."""
    totals: dict[str, Interval]
    """Figures of `MEASURED`, for the whole run."""
    per_image: dict[str, dict[str, float]]
    """Stage -> calls, prompt_tokens, completion_tokens of one image, on average."""
    costs: dict[str, Cost]
    """GPU -> what it would take; empty if the size of a model is not known."""
    notes: tuple[str, ...]
    wall_s: float | None
    """How long a probe's journeys took."""


def predict(
    config: SynthConfig,
    sample: Sample,
    *,
    table: GpuTable,
    gpus: Mapping[str, Gpu],
    params_b: float | None = None,
) -> Prediction:
    """From the sample to the run. `params_b`: of the teacher, where its name does not tell."""
    sums = Sums(sample.images, roles=roles_of(config))
    sizes = {role: size_of(engine.model or "") for role, engine in engines_of(config).items()}
    if params_b is not None:
        sizes["teacher"] = Size(total_b=params_b, active_b=params_b)
    costs = {
        name: cost
        for name, gpu in gpus.items()
        if (cost := sums.cost(sample.num_images, gpu=gpu, table=table, sizes=sizes)) is not None
    }
    notes = list(sample.notes)
    if costs:
        notes.append(
            f"GPU hours and prices follow from a table of assumptions: {table.prefill_share:.0%} of peak arithmetic, "
            f"{table.decode_share:.0%} of bandwidth, {table.concurrency} replies at a time; --gpus FILE changes them"
        )
    else:
        notes.append(
            "no GPU hours: nothing was kept, or a model's size is not in its name (--params-b is the teacher's)"
        )
    totals = {name: sums.total(name, sample.num_images) for name in MEASURED}
    notes += _over_budget(config, totals)
    return Prediction(
        config=config_digest(config),
        is_measured=sample.is_measured,
        num_sampled=len(sample.images),
        num_images=sample.num_images,
        totals=totals,
        per_image=_per_image(sample, config.stages),
        costs=costs,
        notes=tuple(notes),
        wall_s=sample.wall_s,
    )


def _over_budget(config: SynthConfig, totals: Mapping[str, Interval]) -> Iterator[str]:
    """A note for each limit that the run is expected to reach."""
    tokens = totals["prompt_tokens"].middle + totals["completion_tokens"].middle
    for key, limit, expected in (
        ("requests", config.budget.requests, totals["calls"].middle),
        ("tokens", config.budget.tokens, tokens),
    ):
        if limit is not None and expected > limit:
            yield (
                f"budget.{key}={limit:,} is less than the {expected:,.0f} expected: the run would stop after about "
                f"{limit / expected:.0%} of it"
            )


def _per_image(sample: Sample, order: Sequence[str]) -> dict[str, dict[str, float]]:
    asked = {stage for image in sample.images for stage in image.calls}
    columns = ("calls", "prompt_tokens", "completion_tokens")
    return {
        stage: {
            column: sum(getattr(image, column).get(stage, 0.0) for image in sample.images)
            / len(sample.images)
            for column in columns
        }
        for stage in order
        if stage in asked
    }


def write_prediction(config: SynthConfig, prediction: Prediction) -> str:
    """Keep it beside the run; returns where."""
    path = Run(config.run_dir).path(PREDICTION_FILE)
    files.write(path, (json.dumps(asdict(prediction), indent=2, ensure_ascii=False) + "\n").encode())
    return path
