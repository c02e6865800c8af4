"""Make instruction data from images.

    python pipelines/synth.py --config configs/synth/tiny.yaml key=value ...
    ray job submit --working-dir . -- python pipelines/synth.py --config ... run_dir=/shared/runs/a executor.kind=ray

The same command again goes on where it was: what is committed is not worked again, and no model is asked twice.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from infinity_mm.config import load_config
from infinity_mm.errors import BudgetSpentError, UserError

if TYPE_CHECKING:
    from infinity_mm.synth.summary import Summary

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    config: Annotated[Path, typer.Option(help="YAML file; the keys are the fields of SynthConfig.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example policy.keep_at=9 run_dir=/data/runs/a")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    progress: Annotated[
        Literal["auto", "json"],
        typer.Option(help="auto: a live table in a terminal, lines elsewhere; json: JSON lines."),
    ] = "auto",
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve the progress for Prometheus at this port, 0 to 65535.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address for --metrics-port; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Parse, build, run, report."""
    from infinity_mm.runtime.progress import (
        show_progress,  # heavy imports wait until --help is out of the way
    )
    from infinity_mm.synth.config import SynthConfig
    from infinity_mm.synth.run import run_synthesis

    try:
        loaded = load_config(SynthConfig, config, overrides or [])
        with show_progress(
            style="none" if quiet else progress, metrics_port=metrics_port, metrics_host=metrics_host
        ) as on_event:
            summary = run_synthesis(loaded, on_event)
    except BudgetSpentError as error:
        typer.secho(f"stopped: {error}", fg="yellow", err=True)
        raise typer.Exit(3) from error
    except UserError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    if as_json:
        json.dump(dataclasses.asdict(summary), sys.stdout, ensure_ascii=False)
        print()
    else:
        report(summary, Console())


def report(summary: Summary, console: Console) -> None:
    """What became of the samples at every stage, and what came out."""
    table = Table("stage", title=summary.name)
    columns = {"went on": "continued", "split": "expanded", "merged": "merged", "dropped": "dropped"}
    columns |= {"set aside": "quarantined"}
    for heading in (*columns, "calls"):
        table.add_column(heading, justify="right")
    table.add_column("why dropped or set aside")
    for stage, fates in summary.fates.items():
        reasons = {**summary.dropped.get(stage, {}), **summary.quarantined.get(stage, {})}
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
        counts = [str(fates.get(column) or "") for column in columns.values()]
        table.add_row(stage, *counts, str(summary.calls.get(stage, "")), why)
    console.print(table)
    console.print(
        f"{summary.images_read} images, {summary.questions_planned} questions planned, "
        f"{sum(summary.calls.values())} calls ({summary.calls_from_journal} from the journal, "
        f"{summary.calls_failed} failed), {summary.pairs_kept} pairs kept ({summary.pairs_rewritten} rewritten) "
        f"of {len(summary.types_covered)} types, {summary.conversations} conversations, {summary.wall_s:.1f} s",
        highlight=False,
    )
    if summary.predicted is not None:
        beside = Table("predicted", "low", "expected", "high", "measured", title="Prediction and measurement")
        for name, row in summary.predicted.items():
            beside.add_row(name.replace("_", " "), *(f"{number:,.0f}" for number in row.values()))
        console.print(beside)
    for file in summary.published:
        console.print(file, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
