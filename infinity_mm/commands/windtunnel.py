"""`infinity-mm windtunnel gallery`, `teacher`: the drawn world whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, Model, console_for, print_json


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
    print_json({"gallery": str(out)}) if as_json else Console().print(f"wrote {out}")


def teacher(
    model: Model = "nano-teacher",
    world_seed: Annotated[int, typer.Option(help="Which held-out world.")] = 1,
    images: Annotated[int, typer.Option(help="Number of held-out images.", min=1)] = 200,
    as_json: JsonFlag = False,
) -> None:
    """Measure a teacher: its questions, its judging (also blind), what a cut at 8 keeps of its answers."""
    from infinity_mm.engines.transformers import TransformersSpec
    from infinity_mm.eval.memory_images import MemoryImages
    from infinity_mm.windtunnel.teacher import measure_teacher

    with console_for(as_json).status(f"measuring {model} on {images} held-out images"):
        result = measure_teacher(
            TransformersSpec(model=model), MemoryImages(), world_seed=world_seed, num_images=images
        )
    print_json(result) if as_json else Console().print_json(json.dumps(result))
