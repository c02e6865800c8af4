from __future__ import annotations

import io

import pytest

from infinity_mm.runtime.events import PassCommitted, PassSkipped, PassStarted, UnitDone
from infinity_mm.runtime.progress import PlainProgress, show_progress

EVENTS = [
    PassSkipped(pass_name="read", totals={"in": 9, "out": 8}),
    PassStarted(pass_name="ask", num_units=3, num_done=1),
    UnitDone(pass_name="ask", unit="00001", counts={"in": 4, "out": 3}, seconds=1.0),
    UnitDone(pass_name="ask", unit="00002", counts={"in": 4, "out": 4}, seconds=1.0),
    PassCommitted(pass_name="ask", totals={"in": 8, "out": 7}, seconds=2.0),
]


def test_a_log_file_gets_plain_lines() -> None:
    out = io.StringIO()
    listen = PlainProgress(out, seconds_between=0.0)
    for event in EVENTS:
        listen(event)
    assert out.getvalue().splitlines() == [
        "        read  committed before: 9 in, 8 out",
        "         ask  3 units, 1 committed before",
        "         ask  2 of 3 units, 4 in, 3 out",
        "         ask  3 of 3 units, 8 in, 7 out",
        "         ask  committed: 8 in, 7 out, 2.0 s",
    ]


def test_units_that_follow_fast_share_a_line() -> None:
    out = io.StringIO()
    with show_progress(out) as listen:
        for event in EVENTS:
            listen(event)
    assert len(out.getvalue().splitlines()) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_row_per_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with show_progress(out) as listen:
        for event in EVENTS:
            listen(event)
    assert "committed before" in out.getvalue()
    assert "ask" in out.getvalue()
