"""`infinity-mm`: the workbench's functions for people, with help texts, progress and `--json`.

Imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from infinity_mm.errors import UserError, explain

app = typer.Typer(
    name="infinity-mm",
    help="Images in, instruction data and a fine-tuned vision-language model out, with every step measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
windtunnel = typer.Typer(help="The drawn world whose truth is known.", no_args_is_help=True)
app.add_typer(windtunnel, name="windtunnel")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Model = Annotated[
    str, typer.Argument(help="A shipped model (nano-base, nano-teacher), a checkpoint folder or a Hub id.")
]


@app.command()
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
    summary = run_demo(config, console=_console(as_json))
    if as_json:
        _print_json(summary)
    else:
        print_demo(summary, Console())


@app.command(name="eval")
def evaluate(
    model: Model,
    task: Annotated[str, typer.Option(help="Evaluation task.")] = "windtunnel",
    world_seed: Annotated[int, typer.Option(help="Which held-out world.")] = 1,
    images: Annotated[int, typer.Option(help="Number of held-out images.", min=1)] = 200,
    questions_per_image: Annotated[int, typer.Option(min=1)] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Accuracy of a model, with the blank-image control beside it."""
    if task != "windtunnel":
        raise explain(what=f"there is no task `{task}`", where="--task", fix="use windtunnel")
    from infinity_mm.engines.transformers import TransformersSpec
    from infinity_mm.eval.windtunnel import MemoryImages, evaluate_windtunnel

    with _console(as_json).status(f"asking {model} about {images} held-out images"):
        result = evaluate_windtunnel(
            TransformersSpec(model=model),
            MemoryImages(),
            world_seed=world_seed,
            num_images=images,
            questions_per_image=questions_per_image,
        )
    if as_json:
        _print_json(result)
    else:
        _print_eval(model, result)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run directory: a path or a URL.")],
    pictures: Annotated[int, typer.Option(help="Pictures on the page.", min=0)] = 60,
    as_json: JsonFlag = False,
) -> None:
    """Write `report/index.html` of a run: the funnel, the figures and a sample of pictures."""
    from infinity_mm.report.run_report import write_report

    path = write_report(run, num_pictures=pictures)
    _print_json({"report": path}) if as_json else Console().print(f"wrote {path}")


@app.command()
def publish(
    target: Annotated[str, typer.Argument(help="A run directory (path or URL), or a checkpoint folder.")],
    repo: Annotated[str, typer.Option(help="USER/NAME or ORG/NAME on the Hub.")],
    private: Annotated[bool, typer.Option(help="Make the repository private, if it has to be made.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would go where; nothing is written.")] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="Another Hub; default HF_ENDPOINT, then the public one.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Publish a run as a data set, or a checkpoint as a model, on the Hugging Face Hub.

    Readers of `main` see the whole set or nothing of it, and the same command again goes on where it was. Log in first
    with `hf auth login`, or set HF_TOKEN.
    """
    from infinity_mm.publishing import target as publishing

    console = _console(as_json)
    if dry_run:
        plan = publishing.dry_run(target, repo=repo, private=private, endpoint=endpoint)
        _print_json(plan) if as_json else publishing.print_plan(plan, console)
        return
    done = publishing.publish_target(
        target,
        repo=repo,
        private=private,
        endpoint=endpoint,
        say=lambda line: console.print(line, markup=False, highlight=False),
    )
    _print_json(done) if as_json else publishing.print_done(done, console)


@windtunnel.command()
def gallery(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("runs/gallery.html"),
    world_seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    per_family: Annotated[int, typer.Option(help="Pictures of each family.", min=1)] = 12,
    as_json: JsonFlag = False,
) -> None:
    """Write a page with pictures of the world, their questions, right answers and wrong ones."""
    from infinity_mm.windtunnel.gallery import write_gallery

    out.parent.mkdir(parents=True, exist_ok=True)
    write_gallery(out, world_seed=world_seed, num_per_family=per_family)
    _print_json({"gallery": str(out)}) if as_json else Console().print(f"wrote {out}")


@windtunnel.command()
def teacher(
    model: Model = "nano-teacher",
    world_seed: Annotated[int, typer.Option(help="Which held-out world.")] = 1,
    images: Annotated[int, typer.Option(help="Number of held-out images.", min=1)] = 200,
    as_json: JsonFlag = False,
) -> None:
    """Measure a teacher: its questions, its judging (also blind), what a cut at 8 keeps of its answers."""
    from infinity_mm.engines.transformers import TransformersSpec
    from infinity_mm.eval.windtunnel import MemoryImages
    from infinity_mm.windtunnel.teacher import measure_teacher

    with _console(as_json).status(f"measuring {model} on {images} held-out images"):
        result = measure_teacher(
            TransformersSpec(model=model), MemoryImages(), world_seed=world_seed, num_images=images
        )
    _print_json(result) if as_json else Console().print_json(json.dumps(result))


def _console(as_json: bool) -> Console:
    """With `--json`, standard output holds the JSON alone and progress goes to standard error."""
    return Console(stderr=as_json)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_eval(model: str, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{model} on held-out world {result['world_seed']}")
    for column in ("", "accuracy", "blank image", "questions"):
        table.add_column(column, justify="left" if not column else "right")
    for group in ("by_family", "by_type"):
        for name, row in result[group].items():
            blank = f"{row['accuracy_blank_image']:.1%}"
            table.add_row(name, f"{row['accuracy']:.1%}", blank, str(row["num_questions"]))
        table.add_section()
    total = str(result["num_questions"])
    table.add_row("all", f"{result['accuracy']:.1%}", f"{result['accuracy_blank_image']:.1%}", total)
    Console().print(table)


def main() -> None:
    """Run the command line; a user error is printed without a traceback and exits with 2."""
    try:
        app()
    except UserError as error:
        # Escaped: an install line such as infinity-mm[s3] would lose its brackets.
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
