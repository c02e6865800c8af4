"""`infinity-mm import`, `export`, `publish`: data in other formats, and out into the world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infinity_mm.commands.shared import JsonFlag, console_for, print_json
from infinity_mm.errors import explain


def import_data(
    format: Annotated[str, typer.Argument(help="llava, messages, infinity-mm or coco.")],
    path: Annotated[
        Path, typer.Argument(help="JSON file (llava, coco); file or folder of Parquet or tars (the others).")
    ],
    out: Annotated[Path, typer.Option(help="New folder to write; it appears whole or not at all.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder that image names are relative to; default: that of the file.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Data set name for rows that give none.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence for rows that give none.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read training data of another format into the layout that runs publish and `train/sft.py` reads.

    Every row is taken or listed in rejected.jsonl with its reason. Exits with 1 if no row could be taken.
    """
    from infinity_mm.formats.convert import import_data

    with console_for(as_json).status(f"reading {path}"):
        summary = import_data(format, path, out, images=images, source=source, licence=licence)
    _print_conversion(summary, out, as_json)


def export_data(
    run_or_folder: Annotated[
        Path,
        typer.Argument(
            help="A finished run, or a folder that `import` wrote; with --with-code a model as `serve` takes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder to write; it appears whole or not at all.")],
    to: Annotated[
        str | None, typer.Option(help="messages, llava, infinity-mm, swift or llamafactory.")
    ] = None,
    onto: Annotated[
        Path | None,
        typer.Option(
            help="With --to infinity-mm: the tars the images came from; each is written again, extended."
        ),
    ] = None,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Copy a checkpoint with the model's code beside it.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write rows in the format of another tool (--to), or a checkpoint that loads without this package (--with-code).

    Image bytes stay as they are. Rows that the format cannot hold are listed in rejected.jsonl. Exits with 1 if no row
    could be written. With --onto the turns that a run made are appended to the records whose images they are about.
    What --with-code writes loads in transformers and vLLM with trust_remote_code.
    """
    if with_code == (to is not None):
        raise explain(
            what="export needs --to FORMAT for data or --with-code for a checkpoint, and not both",
            where="infinity-mm export",
            fix="infinity-mm export RUN --to FORMAT --out DIR, or infinity-mm export CHECKPOINT --with-code --out DIR",
        )
    if to is None:
        from infinity_mm.serving.with_code import export_with_code

        code = export_with_code(str(run_or_folder), out)
        if as_json:
            print_json({"out": str(out), "code": [path.name for path in code]})
        else:
            Console().print(
                f"wrote {out} with {len(code)} files of code; load it with trust_remote_code=True",
                markup=False,
                soft_wrap=True,
            )
        return
    from infinity_mm.formats.convert import export_data, extend_data

    if onto is not None and to != "infinity-mm":
        raise explain(
            what=f"--onto extends Infinity-MM's own tars, not {to}",
            where="infinity-mm export",
            fix="infinity-mm export RUN --to infinity-mm --onto SHARDS --out DIR",
        )
    with console_for(as_json).status(f"reading {run_or_folder}"):
        summary = (
            export_data(run_or_folder, to, out) if onto is None else extend_data(run_or_folder, onto, out)
        )
    _print_conversion(summary, out, as_json)


def _print_conversion(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    from infinity_mm.formats.convert import REJECTED_FILE

    if as_json:
        print_json(summary | {"out": str(out)})
    else:
        console = Console(highlight=False)
        console.print(
            f"{summary['rows']} rows in {summary['read']}: {summary['taken']} written as {summary['written']} "
            f"({summary['text_only']} of text only, {summary['multi_image']} with several images), "
            f"{summary['rejected']} rejected"
        )
        for reason, count in summary["reasons"].items():
            console.print(f"  {count:>8}  {reason}")
        for name, count in summary["not_carried"].items():
            console.print(
                f"  {count:>8}  rows without their field `{name}`, which has no place", markup=False
            )
        console.print(
            f"wrote {out}; what was rejected is in {out / REJECTED_FILE}", soft_wrap=True, markup=False
        )
    if not summary["taken"]:
        raise typer.Exit(1)


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

    console = console_for(as_json)
    if dry_run:
        plan = publishing.dry_run(target, repo=repo, private=private, endpoint=endpoint)
        print_json(plan) if as_json else publishing.print_plan(plan, console)
        return
    done = publishing.publish_target(
        target,
        repo=repo,
        private=private,
        endpoint=endpoint,
        say=lambda line: console.print(line, markup=False, highlight=False),
    )
    print_json(done) if as_json else publishing.print_done(done, console)
