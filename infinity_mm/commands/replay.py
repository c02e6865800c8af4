"""`infinity-mm replay RUN --reason R`: once more, only what a run set aside or dropped for that reason."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, print_json


def replay(
    run: Annotated[str, typer.Argument(help="A finished run: a path or a URL.")],
    reason: Annotated[str, typer.Option(help="As its summary counts it: http_503, timeout, score_low, ...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value on top of the run's own configuration.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only what ended at this stage.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Go on from this earlier stage, as after a change of prompts."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Run directory of the replay; default: below RUN/replays.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run again only what was set aside or dropped for a reason, each sample from the stage where it ended.

    The rows are added to those of RUN, from a run directory of their own; the same command again goes on.
    """
    from infinity_mm.runtime.progress import show_progress
    from infinity_mm.synth.aside_pass import Aside
    from infinity_mm.synth.replay import replay as run_replay

    aside = Aside(run_dir=run, reason=reason, stage=stage, start=start)
    with show_progress() as on_event:
        found = run_replay(aside, overrides=overrides or [], out=out, on_event=on_event)
    if as_json:
        print_json(asdict(found))
        return
    console = Console(highlight=False)
    console.print(
        f"{found.taken} samples taken, {found.calls} calls, {found.pairs_kept} pairs kept in {found.conversations} "
        f"conversations, in {found.run_dir}",
        markup=False,
        soft_wrap=True,
    )
    for why, number in sorted(found.again.items(), key=lambda item: -item[1]):
        console.print(f"  {number:>8}  {why}", markup=False)
