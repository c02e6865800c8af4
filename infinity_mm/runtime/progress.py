"""Progress: a live table in a terminal, a plain line now and then anywhere else, JSON lines for machines.

event --> Tally --> table (terminal)  |  line (log file, `ray job logs`, a pipe)  |  {"pass": ...} (--progress json)
              \\--> Prometheus (--metrics-port)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infinity_mm.runtime.events import Event, Listener, UnitDone, UnitsUnderWay
from infinity_mm.runtime.tally import PassTally, Tally, calls

Style = Literal["auto", "json", "none"]
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_JSON = 1.0
_MOST_REASONS = 8
"""Reasons shown in the table; the others are one line."""


@contextmanager
def show_progress(
    stream: TextIO | None = None,
    *,
    style: Style = "auto",
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
) -> Iterator[Listener]:
    """Yield a listener for `run_passes` that writes to `stream`, by default standard error.

    `metrics_port`: also serve the same figures for Prometheus, at http://HOST:PORT/metrics, until the end.
    """
    tally = Tally()
    if metrics_port is None:
        with _view(tally, stream or sys.stderr, style) as listener:
            yield listener
        return
    from infinity_mm.runtime.metrics import serve_metrics

    with (
        serve_metrics(tally, port=metrics_port, host=metrics_host),
        _view(tally, stream or sys.stderr, style) as listener,
    ):
        yield listener


@contextmanager
def _view(tally: Tally, stream: TextIO, style: Style) -> Iterator[Listener]:
    console = Console(file=stream)
    if style == "none":
        yield lambda event: _nothing(tally(event))
    elif style == "json":
        yield JsonProgress(stream, tally=tally)
    elif not console.is_terminal:
        yield PlainProgress(stream, tally=tally)
    else:
        with Live(get_renderable=lambda: table(tally), console=console, refresh_per_second=2):
            yield lambda event: _nothing(tally(event))


def _nothing(_: PassTally) -> None:
    """A listener returns nothing."""


@final
class PlainProgress:
    """One line when a pass starts and ends, and one every ten seconds in between."""

    def __init__(
        self,
        stream: TextIO,
        *,
        seconds_between: float = _SECONDS_BETWEEN_LINES,
        tally: Tally | None = None,
    ) -> None:
        self._stream = stream
        self._seconds_between = seconds_between
        self._last = 0.0
        self._tally = tally or Tally()

    def __call__(self, event: Event) -> None:
        """Write the event, or leave it out if the last line is recent."""
        tally = self._tally(event)
        now = time.monotonic()
        if isinstance(event, (UnitDone, UnitsUnderWay)) and now - self._last < self._seconds_between:
            return
        self._last = now
        print(f"{event.pass_name:>12}  {line(tally)}", file=self._stream, flush=True)


@final
class JsonProgress:
    """One JSON object a line: when a pass starts and ends, and at most one a second in between."""

    def __init__(
        self, stream: TextIO, *, tally: Tally, seconds_between: float = _SECONDS_BETWEEN_JSON
    ) -> None:
        self._stream, self._tally, self._seconds_between = stream, tally, seconds_between
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        """Write where the pass is now."""
        tally = self._tally(event)
        now = time.monotonic()
        if isinstance(event, (UnitDone, UnitsUnderWay)) and now - self._last < self._seconds_between:
            return
        self._last = now
        print(json.dumps(tally.to_plain(), ensure_ascii=False), file=self._stream, flush=True)


def line(tally: PassTally) -> str:
    """Where a pass is, in words."""
    counts = tally.counts
    came, went = int(counts["in"]), int(counts["out"])
    if tally.state == "committed before":
        return f"committed before: {came} in, {went} out"
    if tally.state == "committed":
        return f"committed: {came} in, {went} out, {tally.seconds:.1f} s"
    if tally.units_done == tally.units_done_before and not tally.under_way:
        before = tally.units_done_before
        return f"{tally.num_units} units" + (f", {before} committed before" if before else "")
    parts = [f"{tally.units_done} of {tally.num_units} units", f"{came} in", f"{went} out"]
    if counts["pairs"]:
        parts.append(f"{int(counts['pairs'])} pairs kept")
    if asked := calls(counts, "calls"):
        parts.append(f"{asked} calls")
    if rate := tally.rate("tokens"):
        parts.append(f"{rate:.0f} tokens/s")
    if (share := tally.cached_share) is not None:
        parts.append(f"{share:.0%} cached")
    if (eta := tally.eta_s) is not None:
        parts.append(f"{clock(eta)} to go")
    return ", ".join(parts)


def table(tally: Tally) -> RenderableType:
    """The live view: a row per pass, and below it what the present one does."""
    tally.tick()
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("pass")
    rows.add_column("", width=20)
    for heading in ("done", "of", "went on", "kept", "dropped", "set aside", "time", "to go"):
        rows.add_column(heading, justify="right")
    for one in tally.passes.values():
        rows.add_row(*_row(one))
    now = tally.now
    return Group(rows, *(_details(now) if now is not None and now.state == "running" else ()))


def _row(one: PassTally) -> list[RenderableType]:
    counts = one.counts
    is_over = one.state != "running"
    share = 1.0 if is_over else one.units_done / max(one.num_units, 1)
    if not is_over and one.num_inputs:
        before = one.units_done_before / max(one.num_units, 1)
        share = min(1.0, before + counts["in"] / one.num_inputs)
    dropped = sum(sum(reasons.values()) for (_, fate), reasons in one.fates.items() if fate == "dropped")
    aside = sum(sum(reasons.values()) for (_, fate), reasons in one.fates.items() if fate == "quarantined")
    of = "" if is_over or one.num_inputs is None else f"{one.num_inputs:,}"
    return [
        one.name,
        "[dim]committed before[/]"
        if one.state == "committed before"
        else ProgressBar(total=1.0, completed=share, width=20),
        _number(counts["in"]),
        of,
        _number(counts["out"]),
        _number(counts["pairs"]),
        _number(dropped),
        _number(aside),
        clock(one.seconds) if one.state != "committed before" else "",
        "" if (eta := one.eta_s) is None else clock(eta),
    ]


def _details(now: PassTally) -> Iterator[RenderableType]:
    counts = now.counts
    asked = calls(counts, "calls")
    if asked:
        known, failed = calls(counts, "from_journal"), calls(counts, "failed_calls")
        text = f"{asked:,} calls, {known / asked:.0%} from the journal, {failed:,} failed; "
        hits = "" if (share := now.cached_share) is None else f", {share:.0%} of prompts from prefix caches"
        yield Text(f"\n{text}{now.rate('tokens'):,.0f} tokens/s{hits}, {now.rate('samples'):.2f} images/s")
    found = [
        (number, f"{stage}: {reason}" + (" (set aside)" if fate == "quarantined" else ""))
        for (stage, fate), reasons in now.fates.items()
        if fate in ("dropped", "quarantined")
        for reason, number in reasons.items()
    ]
    found.sort(key=lambda each: (-each[0], each[1]))
    shown = found[:_MOST_REASONS]
    if len(found) > len(shown):
        rest = found[_MOST_REASONS:]
        shown.append((sum(number for number, _ in rest), f"{len(rest)} other reasons"))
    if shown:
        why = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        why.add_column(justify="right")
        why.add_column()
        for number, name in shown:
            why.add_row(f"{number:,}", Text(name))
        yield Text("\nnot kept")
        yield why


def _number(value: float) -> str:
    return f"{int(value):,}" if value else ""


def clock(seconds: float) -> str:
    """8 s, 3:20, 5:03:20."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
