"""Every sample's fate, and the list of samples to leave out."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from test_training_loader import SomeBad, loader, two_phases

from infinity_mm.data.ledger import Account, Ledger, account
from infinity_mm.data.loader import LoaderState
from infinity_mm.data.quarantine import Listed, Quarantine, append_quarantine, read_quarantine
from infinity_mm.errors import UserError
from infinity_mm.training.guard import BadStep


def run(path: Path, state: LoaderState, num_steps: int, **keys: Any) -> LoaderState:
    """A run that writes its ledger; returns where it stands."""
    ledger = Ledger(path, step=state.step)
    for step in islice(loader(state, **keys), num_steps):
        ledger.write(step, step.spoiled)
        state = step.next
    return state


def test_used_dropped_quarantined_and_waiting_are_what_was_seen(tmp_path: Path) -> None:
    state = run(tmp_path / "ledger.jsonl", LoaderState(), 6, source=SomeBad(size=12))
    found = account(tmp_path / "ledger.jsonl")
    assert found.steps == 6
    assert (
        found.seen
        == found.used + sum(found.dropped.values()) + sum(found.quarantined.values()) + found.waiting
    )
    assert set(found.dropped) == {"over-long", "no messages"}
    assert set(found.quarantined) == {"2 `<image>` places but 1 images", "not_an_image", "truncated"}
    assert found.seen == state.epoch * 12 + min(12, 8 * (state.window + 1))


@pytest.mark.parametrize("quarantine", [False, True])
def test_samples_of_a_step_that_was_left_out_share_one_fate(tmp_path: Path, quarantine: bool) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", step=0)
    first, second = islice(loader(source=SomeBad(size=12)), 2)
    one = first.planned[0]
    bad = BadStep(problem="loss nan", losses={(one.source, one.id): 2.5})
    left_out = bad.fates(first.planned, first.spoiled, quarantine=quarantine)
    assert left_out[0].reason == "step left out: loss nan; own loss 2.5000"
    ledger.write(first, [*first.spoiled, *left_out])
    ledger.write(second, second.spoiled)
    found = account(tmp_path / "ledger.jsonl")
    fate = found.quarantined if quarantine else found.dropped
    assert fate["step left out"] == len(first.planned) - len(first.spoiled)
    assert found.used == len(second.planned) - len(second.spoiled)


@pytest.mark.parametrize("saved_at", [1, 3, 4])
def test_steps_done_again_after_a_kill_count_once(tmp_path: Path, saved_at: int) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    keys = {"planner": two_phases(0.5)}
    run(whole, LoaderState(), 6, **keys)
    state = run(killed, LoaderState(), saved_at, **keys)
    run(killed, state, 2, **keys)  # killed after two more steps, the checkpoint is older
    with killed.open("a") as file:
        file.write('{"step": 7, "ope')
    run(killed, state, 6 - saved_at, **keys)
    assert account(killed) == account(whole)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "step": 1,
        "opened": {"0/0": [1, 2]},
        "used": {"0/0": [1]},
        "dropped": [],
        "quarantined": [],
    } | changes


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([entry(), entry(step=2, opened={}, used={"0/0": [1]})], "given a second fate"),
        ([entry(used={"0/0": [3]})], "given a fate without being seen"),
        ([entry(), entry(step=2, opened={"0/0": [2]}, used={})], "opened twice"),
        ([entry(), entry(step=2, opened={"0/0": [5]}, used={"0/0": [5]})], "left without a fate"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], problem: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(json.dumps(step) + "\n" for step in steps))
    with pytest.raises(UserError, match=problem):
        account(path)


def test_a_line_in_the_middle_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("{broken\n" + json.dumps(entry()) + "\n")
    with pytest.raises(UserError, match="not a line of a ledger"):
        account(path)


def test_the_account_is_one_line_for_people() -> None:
    found = Account(
        steps=2, seen=9, used=4, dropped={"over-long": 2}, quarantined={"truncated": 1}, waiting=2
    )
    assert found.line() == (
        "9 samples seen = 4 used + 2 dropped + 1 quarantined + 2 waiting (over-long 2, truncated 1)"
    )


def test_a_quarantine_list_is_written_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first, second = Listed("a", "1", "odd\u2028"), Listed("a", "2", "bad")
    append_quarantine(path, [first, first])
    append_quarantine(path, [first, second])
    assert read_quarantine(path) == [first, second]
    same = Quarantine([Listed("a", "2", "other words"), first])
    assert same.fingerprint == Quarantine([first, second]).fingerprint
    assert same.fingerprint != Quarantine([first]).fingerprint


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"source": "a", "id": "1", "reason": ""}\n{"id": "2"}\n')
    with pytest.raises(UserError, match=r"not an entry(.|\n)*line 2"):
        read_quarantine(path)
    with pytest.raises(UserError, match="there is no file"):
        read_quarantine(tmp_path / "none.jsonl")
