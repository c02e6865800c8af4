"""`infinity-mm`: the workbench's functions for people, with help texts, progress and `--json`.

The commands lie in `commands/`; what they need is imported inside them, so that `--help` answers at once.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from infinity_mm.commands.checkpoints import assemble, evaluate, serve
from infinity_mm.commands.compare import compare
from infinity_mm.commands.data import export_data, import_data, publish
from infinity_mm.commands.doctor import doctor
from infinity_mm.commands.first_steps import demo, init, try_
from infinity_mm.commands.look import report, trace
from infinity_mm.commands.plan import plan
from infinity_mm.commands.replay import replay
from infinity_mm.commands.taxonomy import calibrate_tags, label_seeds, tree
from infinity_mm.commands.windtunnel import gallery, teacher
from infinity_mm.errors import UserError

app = typer.Typer(
    name="infinity-mm",
    help="Images in, instruction data and a fine-tuned vision-language model out, with every step measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order of the work, which is that of `--help`.
app.command()(demo)
app.command("try")(try_)
app.command()(init)
app.command()(doctor)
app.command()(tree)
app.command()(label_seeds)
app.command()(calibrate_tags)
app.command()(plan)
app.command()(report)
app.command()(trace)
app.command()(replay)
app.command()(compare)
app.command("import")(import_data)
app.command("export")(export_data)
app.command()(publish)
app.command()(assemble)
app.command("eval")(evaluate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
windtunnel = typer.Typer(help="The drawn world whose truth is known.", no_args_is_help=True)
app.add_typer(windtunnel, name="windtunnel")
windtunnel.command()(gallery)
windtunnel.command()(teacher)


def main() -> None:
    """Run the command line; a user error is printed without a traceback and exits with 2."""
    try:
        app()
    except UserError as error:
        console = Console(stderr=True)
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)  # it may hold [brackets]
        sys.exit(2)
