"""Progress for people: a bar per pass in a terminal, a plain line now and then anywhere else.

    event --> bar (terminal)  |  line (log file, `ray job logs`, a pipe)

What is shown is how many units are committed, and how many samples came in and went on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infinity_mm.runtime.events import Event, Listener, PassCommitted, PassSkipped, PassStarted, UnitDone

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Listener]:
    """Yield a listener for `run_passes` that writes to `stream`, by default standard error."""
    out = stream or sys.stderr
    console = Console(file=out)
    if not console.is_terminal:
        yield PlainProgress(out)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bars:
        yield _RichProgress(bars)


@final
class PlainProgress:
    """One line when a pass starts and ends, and one every ten seconds in between."""

    def __init__(self, stream: TextIO, *, seconds_between: float = _SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream
        self._seconds_between = seconds_between
        self._last = 0.0
        self._count = _Count()

    def __call__(self, event: Event) -> None:
        """Write the event, or leave it out if the last line is recent."""
        note = self._count.note(event)
        now = time.monotonic()
        if isinstance(event, UnitDone) and now - self._last < self._seconds_between:
            return
        self._last = now
        print(f"{event.pass_name:>12}  {note}", file=self._stream, flush=True)


@final
class _RichProgress:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._count = _Count()

    def __call__(self, event: Event) -> None:
        note = self._count.note(event)
        if isinstance(event, (PassStarted, PassSkipped)):
            self._task = self._bars.add_task(event.pass_name, total=self._count.total, note=note)
        self._bars.update(self._task, total=self._count.total, completed=self._count.done, note=note)


@final
class _Count:
    """What the events of the current pass add up to."""

    def __init__(self) -> None:
        self.done = self.total = self.came_in = self.went_out = 0

    def note(self, event: Event) -> str:
        """Take the event in and say in words where the pass is."""
        match event:
            case PassSkipped(totals=totals):
                self.done = self.total = 1
                return f"committed before: {totals['in']} in, {totals['out']} out"
            case PassStarted(num_units=total, num_done=done):
                self.done, self.total, self.came_in, self.went_out = done, total, 0, 0
                return f"{total} units" + (f", {done} committed before" if done else "")
            case UnitDone(counts=counts):
                self.done += 1
                self.came_in += counts["in"]
                self.went_out += counts["out"]
                return f"{self.done} of {self.total} units, {self.came_in} in, {self.went_out} out"
            case PassCommitted(totals=totals, seconds=seconds):
                self.done = self.total
                return f"committed: {totals['in']} in, {totals['out']} out, {seconds:.1f} s"
