from __future__ import annotations

import io
import json
import urllib.request

import pytest
from rich.console import Console

from infinity_mm.runtime.events import Event, PassCommitted, PassSkipped, PassStarted, UnitDone, UnitsUnderWay
from infinity_mm.runtime.progress import JsonProgress, clock, show_progress, table
from infinity_mm.runtime.tally import PassTally, Tally

START = PassStarted(pass_name="journeys", num_units=4, num_done=1, num_inputs=40)


def under_way(unit: str, **counts: float) -> UnitsUnderWay:
    return UnitsUnderWay(pass_name="journeys", worker="w", counts={unit: counts})


def told(*events: Event, seconds: float = 1.0) -> PassTally:
    """The tally after events that come `seconds` apart."""
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    for event in events:
        found = tally(event)
        now[0] += seconds
    return found


def test_units_under_way_count_until_they_are_committed_and_then_once() -> None:
    first = under_way("a", **{"in": 3, "calls.ask": 9})
    assert told(START, first).counts["in"] == 3
    done = UnitDone(
        pass_name="journeys", unit="a", counts={"in": 10, "out": 4}, seconds=1, metrics={"calls.ask": 30}
    )
    counts = told(START, first, done).counts
    assert (counts["in"], counts["out"], counts["calls.ask"]) == (10, 4, 30)


def test_a_unit_that_another_worker_begins_again_begins_again_at_nothing() -> None:
    again = told(START, under_way("a", **{"in": 7}), under_way("b", **{"in": 2}), under_way("a", **{"in": 1}))
    assert again.counts["in"] == 3


def test_a_reason_that_no_longer_holds_is_not_shown() -> None:
    again = told(START, under_way("a", **{"fate/check/dropped/no": 2}), under_way("a", **{"in": 0}))
    assert again.fates == {}


def test_where_no_server_tells_of_cached_tokens_nothing_is_shown() -> None:
    assert told(START, under_way("a", **{"prompt_tokens.ask": 300})).cached_share is None


def test_time_to_go_follows_from_the_speed_and_from_what_was_committed_before() -> None:
    # 40 samples in 4 units, one committed before: 30 remain, 5 are done, at 5 in 2 s.
    tally = told(START, under_way("a"), under_way("a", **{"in": 5, "tokens_now": 600}))
    assert tally.rate("samples") == 2.5
    assert tally.rate("tokens") == 300
    assert tally.eta_s == 10.0


def test_speed_is_that_of_the_last_half_minute() -> None:
    slow = [under_way("a", **{"in": number}) for number in range(10)]
    fast = [under_way("a", **{"in": 9 + 5 * number}) for number in range(1, 5)]
    assert told(START, *slow, *fast, seconds=10.0).rate("samples") == pytest.approx(0.5)


def test_fates_are_told_by_reason() -> None:
    tally = told(START, under_way("a", **{"fate/check/dropped/no": 2, "fate/ask/quarantined/timeout": 1}))
    assert tally.fates[("check", "dropped")] == {"no": 2}
    plain = tally.to_plain()
    assert plain["dropped"] == {"check/no": 2}
    assert plain["quarantined"] == {"ask/timeout": 1}


EVENTS = (
    PassSkipped(pass_name="plan", totals={"in": 41, "out": 40}),
    START,
    under_way(
        "a",
        **{"in": 2, "pairs": 5, "calls.ask": 8, "from_journal.ask": 4, "fate/check/dropped/no": 3},
        **{"prompt_tokens.ask": 300, "prompt_tokens.answer": 100, "cached_tokens.ask": 240},
    ),
)


def test_the_table_shows_passes_speed_and_reasons() -> None:
    tally = Tally()
    for event in EVENTS:
        tally(event)
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(table(tally))
    text = console.export_text()
    assert "committed before" in text
    assert "8 calls, 50% from the journal, 0 failed" in text
    assert "60% of prompts from prefix caches" in text
    assert "3  check: no" in text


def test_machines_get_one_object_a_line() -> None:
    out = io.StringIO()
    listen = JsonProgress(out, tally=Tally(), seconds_between=0.0)
    for event in (*EVENTS, PassCommitted(pass_name="journeys", totals={"in": 40, "out": 9}, seconds=7.0)):
        listen(event)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["state"] for line in lines] == ["committed before", "running", "running", "committed"]
    assert (lines[2]["samples_done"], lines[2]["pairs_kept"], lines[2]["from_journal"]) == (2, 5, 4)
    assert (lines[2]["prompt_tokens"], lines[2]["cached_tokens"], lines[2]["cached_share"]) == (400, 240, 0.6)
    assert (lines[3]["samples_out"], lines[3]["seconds"]) == (9, 7.0)


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (75, "1:15"), (18_200, "5:03:20")])
def test_times_are_short(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_prometheus_reads_the_same_figures() -> None:
    pytest.importorskip("prometheus_client", reason="pip install 'infinity-mm[metrics]'")
    from infinity_mm.runtime.metrics import serve_metrics

    tally = Tally()
    for event in EVENTS:
        tally(event)
    with serve_metrics(tally, port=0, host="127.0.0.1") as port:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert 'infinity_mm_samples_done{pass="journeys"} 2.0' in text
    assert 'infinity_mm_calls_from_journal{pass="journeys"} 4.0' in text
    assert 'infinity_mm_cached_share{pass="journeys"} 0.6' in text
    assert 'infinity_mm_tokens_per_second{pass="journeys"} 0.0' in text
    assert 'infinity_mm_fates{fate="dropped",pass="journeys",reason="no",stage="check"} 3.0' in text


def test_progress_can_be_silent_and_still_listen() -> None:
    out = io.StringIO()
    with show_progress(out, style="none") as listen:
        for event in EVENTS:
            listen(event)
    assert out.getvalue() == ""
