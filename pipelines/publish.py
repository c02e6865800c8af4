"""Publish a run as a data set, or a checkpoint as a model, on the Hugging Face Hub.

    python pipelines/publish.py /data/runs/photos --repo me/photos-instruct --dry-run
    python pipelines/publish.py runs/student/model --repo me/student --private

The same command again goes on where it was. The token is the one of `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    target: Annotated[str, typer.Argument(help="A run directory (path or URL), or a checkpoint folder.")],
    repo: Annotated[str, typer.Option(help="USER/NAME or ORG/NAME on the Hub.")],
    private: Annotated[bool, typer.Option(help="Make the repository private, if it has to be made.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would go where; nothing is written.")] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="Another Hub; default HF_ENDPOINT, then the public one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Parse, publish, report."""
    from infinity_mm.publishing import target as publishing

    console = Console(stderr=as_json)
    try:
        if dry_run:
            result = publishing.dry_run(target, repo=repo, private=private, endpoint=endpoint)
            show = publishing.print_plan
        else:
            result = publishing.publish_target(
                target,
                repo=repo,
                private=private,
                endpoint=endpoint,
                say=lambda line: console.print(line, markup=False),
            )
            show = publishing.print_done
    except UserError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    print(json.dumps(result, indent=2)) if as_json else show(result, console)


if __name__ == "__main__":
    app()
