"""`infinity-mm doctor`: is this machine ready for a run?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, print_json


def doctor(
    endpoint: Annotated[str | None, typer.Option(help="A model server that a run will ask.")] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="Folder or URL that a run will be written to; default: the current folder."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's key.")
    ] = None,
    packing: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Instead: does packing keep samples apart with this checkpoint, per attention backend?",
        ),
    ] = None,
    convert: Annotated[
        bool, typer.Option(help="With --packing: check what model.convert makes of the checkpoint.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at versions, GPU, memory, disk, Ray, Hub and model server, with a fix for every finding; 1 on problems."""
    from dataclasses import asdict

    if packing is not None:
        from infinity_mm.doctor.packing import check_packing, is_isolated, print_packing

        results = check_packing(packing, convert=convert)
        print_json({"packing": [asdict(one) for one in results]}) if as_json else print_packing(
            results, Console()
        )
        if not is_isolated(results):
            raise typer.Exit(1)
        return
    from infinity_mm.doctor.checks import CHECKS, print_findings
    from infinity_mm.doctor.finding import Asked, run_checks

    with Console(stderr=True).status("looking around; starting Ray takes a few seconds"):
        findings = run_checks(Asked(run_dir=run_dir, endpoint=endpoint, api_key_env=api_key_env), CHECKS)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings, Console())
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
