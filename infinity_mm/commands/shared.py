"""What the commands have in common: the flag `--json`, the name of a model, and where output goes."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Model = Annotated[
    str, typer.Argument(help="A shipped model (nano-base, nano-teacher), a checkpoint folder or a Hub id.")
]


def console_for(as_json: bool) -> Console:
    """With `--json`, standard output holds the JSON alone and progress goes to standard error."""
    return Console(stderr=as_json)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
