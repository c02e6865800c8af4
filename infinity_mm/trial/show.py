"""A trial at the terminal: progress while it runs, a table of what came out, and what to do next."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infinity_mm.runtime.progress import show_progress
from infinity_mm.trial.run import Result, run_trial
from infinity_mm.trial.settings import Settings
from infinity_mm.trial.words import STAGES, in_words

EXIT_CODES = {"done": 0, "failed": 2, "interrupted": 130}
_REASONS_SHOWN = 8


def run_and_show(images: Sequence[str], *, open_page: bool | None, as_json: bool, **options: Any) -> int:
    """Run a trial, print its summary, and return the exit code; `options` are the fields of `Settings`."""
    progress = Console(stderr=True)

    def say(text: str) -> None:
        progress.print(text, highlight=False, markup=False, soft_wrap=True)

    settings = Settings(images=tuple(images), **options)
    with show_progress() as on_event:
        result = run_trial(settings, say=say, on_event=on_event)
    if as_json:
        print(json.dumps(dataclasses.asdict(result), indent=2, ensure_ascii=False))
    else:
        print_result(result, Console())
    if wants_page(open_page, as_json=as_json):
        webbrowser.open(Path(result.page).as_uri())
    return EXIT_CODES[result.state]


def wants_page(open_page: bool | None, *, as_json: bool) -> bool:
    """As asked for; unasked only in a terminal with a screen."""
    if open_page is not None:
        return open_page
    has_screen = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return has_screen and sys.stdout.isatty() and not as_json


def print_result(result: Result, console: Console) -> None:
    """The funnel, the commonest reasons, and the commands that come next."""
    counts = result.counts
    table = Table(
        "",
        "",
        title=f"{counts['pictures_worked']} pictures through {escape(result.model)}",
        show_header=False,
    )
    for name, key in (
        ("questions planned", "planned"),
        ("  written", "written"),
        ("  different", "distinct"),
        ("  answerable", "answerable"),
        ("answers", "answers"),
        ("  kept", "kept"),
        ("    of them repaired", "repaired"),
    ):
        table.add_row(name, str(counts[key]))
    console.print(table)
    _print_reasons("dropped", counts["dropped"], console)
    _print_reasons("failed", counts["failed"], console)
    if result.files_unusable:
        files = ", ".join(f"{in_words(reason)} {number}" for reason, number in result.files_unusable.items())
        _plain(console, f"files left out: {files}")
    if result.state != "done":  # the other notes were told before the work began
        _plain(console, result.notes[0])
    _plain(console, f"page: {result.page}")
    _plain(console, f"{result.wall_s:.0f} s. Next:")
    for command in result.next_commands:
        _plain(console, f"  {command}")


def _print_reasons(fate: str, found: dict[str, dict[str, int]], console: Console) -> None:
    rows = [(number, stage, reason) for stage, reasons in found.items() for reason, number in reasons.items()]
    for number, stage, reason in sorted(rows, reverse=True)[:_REASONS_SHOWN]:
        _plain(console, f"{number:6d} {fate}: {STAGES.get(stage, stage)}: {in_words(reason)}")
    if len(rows) > _REASONS_SHOWN:
        _plain(console, f"       and {len(rows) - _REASONS_SHOWN} more reasons, on the page")


def _plain(console: Console, text: str) -> None:
    """Names and replies are not ours: no markup is read in them."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
