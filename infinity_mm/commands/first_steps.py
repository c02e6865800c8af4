"""`infinity-mm demo`, `try`, `init`: from nothing to a first look, or to a first configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, console_for, print_json


def demo(
    run_dir: Annotated[Path, typer.Option(help="Where the run goes; the same folder again resumes.")] = Path(
        "runs/demo"
    ),
    images: Annotated[int, typer.Option(help="Held-out-world images to synthesise from.", min=4)] = 200,
    seed: Annotated[int, typer.Option(help="Seed of worlds, plan and training.")] = 0,
    workers: Annotated[int, typer.Option(help="Ray workers; 0 runs in this process.", min=0)] = 2,
    steps: Annotated[int, typer.Option(help="Optimiser steps of every student.", min=1)] = 100,
    eval_images: Annotated[int, typer.Option(help="Held-out images for evaluating students.", min=1)] = 160,
    as_json: JsonFlag = False,
) -> None:
    """Run the whole loop on the wind tunnel: images, data, five students, all measured against the truth."""
    from infinity_mm.windtunnel.demo import DemoConfig, print_demo, run_demo

    config = DemoConfig(
        run_dir=str(run_dir.absolute()),
        num_images=images,
        seed=seed,
        num_workers=workers,
        student_steps=steps,
        eval_images=eval_images,
    )
    summary = run_demo(config, console=console_for(as_json))
    if as_json:
        print_json(summary)
    else:
        print_demo(summary, Console())


def try_(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns in quotes.")],
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, as in http://localhost:8000/v1.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Its name on the server; without --endpoint nano-teacher (drawn pictures only), a folder or a Hub id."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Most pictures to work.", min=1, max=1000)] = 20,
    questions: Annotated[int, typer.Option(help="Kinds of question for each picture.", min=1, max=10)] = 3,
    tagger: Annotated[
        str | None,
        typer.Option(
            help="open_clip model that tags pictures, so that questions fit them, as in ViT-B-32/laion2b_s34b_b79k "
            "(downloads 600 MB once). Default: no tags, kinds of question that fit any picture."
        ),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's key.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for page and run; default: one below runs/try for this very command."),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Show the page in a browser; default: in a terminal."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Try the synthesis on some of your own pictures: one page of what is kept, repaired and dropped, and why.

    The same command again goes on where it was; with a larger --n it goes further.
    """
    from infinity_mm.trial.show import run_and_show

    code = run_and_show(
        images,
        endpoint=endpoint,
        model=model,
        num_pictures=n,
        questions_per_image=questions,
        tagger=tagger,
        api_key_env=api_key_env,
        out=out,
        open_page=open_page,
        as_json=as_json,
    )
    raise typer.Exit(code)


def init(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("synth.yaml"),
    images: Annotated[
        str | None,
        typer.Option(help="Folder or URL of your images; without it drawn pictures and nano-teacher."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server; default with --images: http://localhost:8000/v1."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The teacher's name on the server, a folder or a Hub id.")
    ] = None,
    tagger: Annotated[
        str | None,
        typer.Option(help="open_clip model that tags pictures, or `none` for no tags and no download."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's key.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a first configuration for pipelines/synth.py, with every key explained."""
    from infinity_mm.trial.starter import Starter, next_steps, write_starter

    starter = Starter(
        path=path, images=images, endpoint=endpoint, model=model, tagger=tagger, api_key_env=api_key_env
    )
    config = write_starter(starter, force=force)
    steps = list(next_steps(starter))
    if as_json:
        print_json({"config": str(path), "run_dir": config.run_dir, "next_commands": steps})
    else:
        lines = "\n".join(f"  {step}" for step in steps)
        Console().print(f"wrote {path}; next:\n{lines}", highlight=False, markup=False, soft_wrap=True)
