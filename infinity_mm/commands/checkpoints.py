"""`infinity-mm assemble`, `eval`, `serve`: models as folders of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, Model, console_for, print_json
from infinity_mm.errors import explain


def assemble(
    config: Annotated[
        Path, typer.Argument(help="Which parts: a file such as configs/models/aquila_vl_2b.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example vision=/models/siglip.")
    ] = None,
) -> None:
    """Put a vision tower and a language model together with a fresh connector, as a checkpoint folder."""
    from infinity_mm.config import load_config
    from infinity_mm.model.parts import PartsSpec, build_from_parts

    model, processor = build_from_parts(load_config(PartsSpec, config, overrides or []))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    Console().print(f"{out}: {num_parameters:,} parameters", highlight=False)


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
    from infinity_mm.eval.memory_images import MemoryImages
    from infinity_mm.eval.windtunnel import evaluate_windtunnel

    with console_for(as_json).status(f"asking {model} about {images} held-out images"):
        result = evaluate_windtunnel(
            TransformersSpec(model=model),
            MemoryImages(),
            world_seed=world_seed,
            num_images=images,
            questions_per_image=questions_per_image,
        )
    if as_json:
        print_json(result)
    else:
        _print_eval(model, result)


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


def serve(
    context: typer.Context,
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    startup_timeout_s: Annotated[float, typer.Option(help="How long loading may take, in seconds.")] = 1800.0,
) -> None:
    """Serve a checkpoint with vLLM, which must be installed, over OpenAI's protocol; Ctrl-C ends it.

    Every other option goes to vLLM as it is, as in --max-model-len 8192 --tensor-parallel-size 2.
    """
    from infinity_mm.serving.server import ServeConfig
    from infinity_mm.serving.server import serve as run

    config = ServeConfig(
        model=model,
        host=host,
        port=port,
        startup_timeout_s=startup_timeout_s,
        vllm_args=tuple(context.args),
    )
    raise typer.Exit(run(config, say=lambda line: print(line, flush=True)))
