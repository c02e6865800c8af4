"""Fine-tune a vision-language model, in one stage or in several.

    accelerate launch train/sft.py --config configs/train/tiny.yaml key=value ...

The same command again goes on with the latest complete checkpoint of the stage that was interrupted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

# Before torch is imported: where cores are shared (here with the encoding workers), OpenMP threads that spin at a
# barrier were measured to slow a step down 5 to 20 times; sleeping costs at most a third.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from infinity_mm.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    config: Annotated[
        Path, typer.Option(help="YAML file; the keys are the fields of SftConfig, and `stages` for several.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value, for example steps=200 schedule.name=cosine; for one stage stages.NAME.key=value"
        ),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage of the file.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what the run would take, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: as JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress lines.")] = False,
) -> None:
    """Parse, build, run, report."""
    from infinity_mm.training.curriculum import (  # heavy imports wait until --help is done
        load_stages,
        run_stages,
    )
    from infinity_mm.training.plan import print_plan
    from infinity_mm.training.sft import train

    try:
        stages = load_stages(config, overrides or [])
        if plan:
            print_plan(stages, only=stage, as_json=as_json)
            return
        run_stages(
            stages,
            lambda stage: train(stage, quiet=quiet).model_dir is not None,
            only=stage,
            say=print if os.environ.get("RANK", "0") == "0" and not quiet else lambda _: None,
        )
    except UserError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
