"""`infinity-mm tree`, `label-seeds`, `calibrate-tags`: what decides which question suits an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, console_for, print_json


def tree(
    name: Annotated[
        str,
        typer.Argument(
            help="windtunnel, default, grounding, any_picture, or the path of a YAML file, which is checked."
        ),
    ] = "default",
    as_json: JsonFlag = False,
) -> None:
    """Print the types of question of an instruction tree with counts, or say what is wrong with its file."""
    from infinity_mm.taxonomy.tree import Tree
    from infinity_mm.taxonomy.tree_print import print_tree, tree_figures

    found = Tree.load(name)
    print_json(tree_figures(found)) if as_json else print_tree(found, Console())


def label_seeds(
    source: Annotated[
        str,
        typer.Argument(
            help="A .jsonl file with rows of `question`, `tags`, maybe `type`; or a run whose pass `tag` is done."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The JSONL file to write, for plan.seeds.")],
    engine: Annotated[
        Path, typer.Option(help="YAML file with the keys of engines.teacher: kind, model, ...")
    ],
    tree: Annotated[str, typer.Option(help="Instruction tree, as for plan.tree.")] = "default",
    show_images: Annotated[
        bool, typer.Option("--show-images", help="A run's images go to the model with the questions.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a model say of which type known questions are: seeds for the mapping from tags to types.

    The replies are journaled beside the file: the same command again goes on where it was. What gets no type is listed
    with its reason beside the seeds.
    """
    import asyncio

    from infinity_mm.config import load_config
    from infinity_mm.engines.spec import EngineConfig
    from infinity_mm.taxonomy.label_seeds import label_seeds as run
    from infinity_mm.taxonomy.tree import Tree

    spec = load_config(EngineConfig, engine, []).spec()
    with console_for(as_json).status(f"labelling {source}"):
        found = asyncio.run(run(source, out, tree=Tree.load(tree), spec=spec, show_images=show_images))
    print_json(found) if as_json else Console().print_json(json.dumps(found))


def calibrate_tags(
    labels: Annotated[Path, typer.Argument(help="JSONL rows of `image`, `tags` and maybe `absent`.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write, for tagger.calibration.")],
    model: Annotated[str, typer.Option(help="As tagger.model.")],
    vocabulary: Annotated[str, typer.Option(help="As tagger.vocabulary.")] = "general",
    prompt: Annotated[str, typer.Option(help="As tagger.prompt.")] = "a photo of {tag}",
    isotonic: Annotated[bool, typer.Option("--isotonic", help="Any rising curve; for many labels.")] = False,
    min_labels: Annotated[
        int, typer.Option(help="Images with a tag, and without, that it needs for a curve of its own.", min=1)
    ] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Turn a tagger's scores into probabilities, from images whose true tags are known."""
    from infinity_mm.taxonomy.calibrate import calibrate
    from infinity_mm.taxonomy.tagger import TaggerConfig

    config = TaggerConfig(model=model, vocabulary=vocabulary, prompt=prompt)
    method = "isotonic" if isotonic else "platt"
    with console_for(as_json).status(f"tagging the images of {labels}"):
        found = calibrate(labels, config, method=method, min_labels=min_labels, out=out)
    print_json(found) if as_json else Console().print_json(json.dumps(found))
