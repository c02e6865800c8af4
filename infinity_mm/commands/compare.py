"""`infinity-mm compare RUN_A RUN_B`: two prompt sets, teachers or policies side by side on the same images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infinity_mm.commands.shared import JsonFlag, print_json


def compare(
    run_a: Annotated[str, typer.Argument(help="A run directory: a path or a URL.")],
    run_b: Annotated[str, typer.Argument(help="Another one, on the same images.")],
    out: Annotated[str | None, typer.Option(help="The page to write; default: below RUN_B/report.")] = None,
    images: Annotated[int, typer.Option(help="Images on the page.", min=1)] = 40,
    as_json: JsonFlag = False,
) -> None:
    """Compare what two runs kept of the same images, in a table and on a page with the pairs of each picture."""
    from infinity_mm.report.compare import compare as compare_runs
    from infinity_mm.report.compare_page import render_comparison, simulated_note, tables_of
    from infinity_mm.runtime.run import Run
    from infinity_mm.storage import files

    runs = (Run(run_a).run_dir, Run(run_b).run_dir)
    found = compare_runs(*runs)
    names = (f"A: {_name(runs[0])}", f"B: {_name(runs[1])}")
    path = out or Run(runs[1]).path("report", f"compare-{_name(runs[0])}.html")
    files.write(path, render_comparison(found, names=names, runs=runs, most=images).encode())
    if as_json:
        plain = {"page": path, "images": len(found.common), "only_a": found.only_a, "only_b": found.only_b}
        plain |= {"figures": [asdict(one) for one in found.figures], "ends": found.ends, "types": found.types}
        plain |= {"settings": found.settings, "simulated": found.simulated}
        print_json(plain)
        return
    console = Console(highlight=False)
    for heading, _, (head, *rows) in tables_of(found, names):
        if not rows:
            continue
        shown = Table(title=heading)
        for place, column in enumerate(head):
            shown.add_column(column, justify="right" if place else "left")
        for row in rows:
            shown.add_row(*(f"{cell:,}" if isinstance(cell, int | float) else cell for cell in row))
        console.print(shown)
    if note := simulated_note(found, names):
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _name(run_dir: str) -> str:
    return run_dir.rstrip("/").rpartition("/")[2]
