"""`infinity-mm report`, `trace`: what a run did, on a page, and sample by sample."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, print_json
from infinity_mm.errors import explain


def report(
    run: Annotated[str, typer.Argument(help="A run directory, finished or not: a path or a URL.")],
    samples: Annotated[int, typer.Option(help="Most samples in one section of the page.", min=2)] = 48,
    seed: Annotated[int, typer.Option(help="Decides which samples are shown.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write `report/index.html` of a run: the funnel, the figures, and pictures with what was made of them."""
    from infinity_mm.report.run_report import ReportConfig, write_report

    written = write_report(run, ReportConfig(per_section=samples, seed=seed))
    if as_json:
        print_json(written.to_plain())
    else:
        size = f"{written.bytes / 1e6:.1f} MB, {written.rows} samples, {written.pictures} pictures"
        Console().print(f"wrote {written.path} ({size})", highlight=False, markup=False, soft_wrap=True)


def trace(
    run: Annotated[str, typer.Argument(help="A run directory, finished or not.")],
    sample: Annotated[str, typer.Argument(help="Id of a sample, or the beginning of its image's id.")] = "",
    image: Annotated[str, typer.Option(help="SHA-256 of an image, or the beginning of it.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Say where a sample or an image comes from, which calls made it, and what became of it and why."""
    from infinity_mm.report.trace import trace_image, trace_sample
    from infinity_mm.report.trace_print import print_image, print_sample
    from infinity_mm.runtime.run import Run

    if bool(sample) == bool(image):
        raise explain(
            what="trace needs a sample id or an image, and not both",
            where="infinity-mm trace",
            fix="infinity-mm trace RUN SAMPLE_ID, or infinity-mm trace RUN --image SHA256",
        )
    found = trace_image(Run(run), image) if image else trace_sample(Run(run), sample)
    if as_json:
        print_json(found)
    else:
        (print_image if image else print_sample)(found, Console())
