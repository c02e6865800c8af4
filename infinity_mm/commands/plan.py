"""`infinity-mm plan CONFIG`: what would run, what it would take, and what it would cost, before anything is spent."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from infinity_mm.planning.estimate import Interval
    from infinity_mm.planning.prediction import Prediction
    from infinity_mm.synth.config import SynthConfig


def plan(
    config: Annotated[Path, typer.Argument(help="A configuration for pipelines/synth.py.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as for pipelines/synth.py.")
    ] = None,
    probe: Annotated[
        int,
        typer.Option(
            help="Run so many images through the real engines first, in a folder of its own; 0: ask no model.",
            min=0,
        ),
    ] = 0,
    images: Annotated[int, typer.Option(help="Without --probe: images whose sizes are read.", min=1)] = 200,
    kept_share: Annotated[
        float, typer.Option(help="Without --probe: share of pairs taken to be kept.", min=0.0, max=1.0)
    ] = 0.5,
    gpu: Annotated[
        list[str] | None, typer.Option(help="GPUs to price, from the table; default: all.")
    ] = None,
    gpus: Annotated[Path | None, typer.Option(help="Another table than planning/gpus.yaml.")] = None,
    params_b: Annotated[
        float | None, typer.Option(help="Billions of parameters of the teacher, if its name does not tell.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what a synthesis would run, with calls, tokens, GPU hours and cost per 1,000 kept pairs, with error bars.

    The prediction is kept in the run directory; when the run ends it is shown beside the measurement.
    """
    from infinity_mm.config import load_config
    from infinity_mm.planning.gpus import load_gpus
    from infinity_mm.planning.prediction import predict, write_prediction
    from infinity_mm.planning.sample import probe as run_probe
    from infinity_mm.planning.sample import reckon
    from infinity_mm.runtime.progress import show_progress
    from infinity_mm.synth.config import SynthConfig

    table = load_gpus(gpus)
    priced = table.pick(tuple(gpu or ()))
    loaded = load_config(SynthConfig, config, overrides or [])
    if probe:
        with show_progress() as on_event:
            sample = run_probe(loaded, probe, on_event)
    else:
        sample = reckon(loaded, images, kept_share=kept_share)
    found = predict(loaded, sample, table=table, gpus=priced, params_b=params_b)
    path = write_prediction(loaded, found)
    if as_json:
        print(json.dumps(asdict(found) | {"prediction": path}, indent=2, ensure_ascii=False))
    else:
        show(loaded, found, Console(highlight=False))


def show(config: SynthConfig, found: Prediction, console: Console) -> None:
    """The tables."""
    from infinity_mm.runtime.run import Run

    run = Run(config.run_dir)
    states = [(one.name, run.manifest(one.name)) for one in config.passes()]
    done = [name for name, committed in states if committed is not None]
    todo = [name for name, committed in states if committed is None]
    console.print(f"{config.name} in {run.run_dir}", markup=False, soft_wrap=True)
    console.print(
        f"to run: {', '.join(todo) or 'nothing'}" + (f"; committed: {', '.join(done)}" if done else "")
    )
    how = "measured" if found.is_measured else "reckoned, at most"
    stages = Table(title=f"One image, {how}")
    for column in ("stage", "calls", "prompt tokens", "reply tokens"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for stage, row in found.per_image.items():
        stages.add_row(stage, *(f"{number:,.1f}" for number in row.values()))
    sums = [sum(row[column] for row in found.per_image.values()) for column in ("calls", "prompt_tokens")]
    sums.append(sum(row["completion_tokens"] for row in found.per_image.values()))
    stages.add_section()
    stages.add_row("all", *(f"{number:,.1f}" for number in sums))
    console.print(stages)
    whole = Table(title=f"The run: {found.num_images:,.0f} images, from {found.num_sampled}")
    for column in ("", "expected", "95 % interval" if found.is_measured else "by image sizes alone"):
        whole.add_column(column, justify="right" if column else "left")
    for name, interval in found.totals.items():
        whole.add_row(name.replace("_", " "), f"{interval.middle:,.0f}", bar(interval, "{:,.0f}"))
    console.print(whole)
    if found.costs:
        priced = Table(title="By GPU: the run, and 1,000 kept pairs")
        for column in ("GPU", "per server", "run, GPU h", "1,000 kept, GPU h", "US$", "95 % interval"):
            priced.add_column(column, justify="left" if column == "GPU" else "right")
        for name, cost in found.costs.items():
            priced.add_row(
                name,
                str(cost.gpus_per_server),
                f"{cost.gpu_hours.middle:,.3g}",
                f"{cost.gpu_hours_per_1000.middle:.3g}",
                f"{cost.usd_per_1000.middle:.3g}",
                bar(cost.usd_per_1000, "{:.3g}"),
            )
        console.print(priced)
    if found.wall_s is not None:
        console.print(f"the probe's journeys took {found.wall_s:.1f} s with the engines as configured")
    for note in found.notes:
        console.print(f"- {note}", markup=False)


def bar(interval: Interval, form: str) -> str:
    """low to high."""
    return f"{form.format(interval.low)} to {form.format(interval.high)}"
