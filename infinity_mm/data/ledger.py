"""Every sample's fate: what was opened, used, dropped, quarantined, and why; and the proof that nothing is missing.

steps --Ledger.write, one line each--> ledger.jsonl --account--> Account, or an error where sets do not agree

The file only grows. A run that goes on from a checkpoint says so in a line of its own, which takes back the steps
after that checkpoint, so that the account is exact after any number of kills.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from infinity_mm.data.loader import StepBatch
from infinity_mm.data.plan import Drop, SampleKey
from infinity_mm.errors import explain


@final
class Ledger:
    """Appends to the ledger of a run; for the main process alone."""

    def __init__(self, path: Path, *, step: int) -> None:
        """`step`: how many steps the loader of the run has given, as its state says."""
        self.path = path
        if path.is_file() and path.stat().st_size:
            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill cut the last line: its step is taken back below
                    file.write(b"\n")
            self._append({"resumed_at": step})

    def write(self, batch: StepBatch, not_learned: Sequence[Drop]) -> None:
        """One finished step; `not_learned` are those samples in its rows, of all processes, that no optimiser step
        was made of."""
        bad = {drop.key for drop in not_learned}
        used = [sample.key for sample in batch.planned if sample.key not in bad]
        fates = [*batch.dropped, *not_learned]
        self._append(
            {
                "step": batch.next.step,
                "opened": _by_epoch(batch.opened),
                "used": _by_epoch(used),
                **{
                    fate: [
                        [*drop.key, drop.source, drop.id, drop.reason] for drop in fates if drop.fate == fate
                    ]
                    for fate in ("dropped", "quarantined")
                },
            }
        )

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")


def _by_epoch(keys: Sequence[SampleKey]) -> dict[str, list[int]]:
    """Mixture indices by "phase/epoch", for short lines."""
    found: dict[str, list[int]] = {}
    for phase, epoch, index in keys:
        found.setdefault(f"{phase}/{epoch}", []).append(index)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What became of all samples that a run has seen; a use of a sample counts, not the sample."""

    steps: int
    seen: int
    """Samples of all opened windows: used + dropped + quarantined + waiting."""
    used: int
    dropped: dict[str, int]
    """By reason, up to the first colon."""
    quarantined: dict[str, int]
    """By reason, up to the first colon."""
    waiting: int
    """Samples of the window that was open at the end, not yet come to."""

    def line(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{reason} {n}" for reason, n in (self.dropped | self.quarantined).items())
        return (
            f"{self.seen} samples seen = {self.used} used + {sum(self.dropped.values())} dropped + "
            f"{sum(self.quarantined.values())} quarantined + {self.waiting} waiting"
            + (f" ({reasons})" if reasons else "")
        )


def account(path: Path) -> Account:
    """Sum a ledger up; raises UserError when a sample has two fates, one without being seen, or none."""
    seen: set[SampleKey] = set()
    fates: dict[SampleKey, str] = {}
    reasons = {"dropped": Counter[str](), "quarantined": Counter[str]()}
    last_opened: set[SampleKey] = set()
    steps = 0
    for entry in _valid_steps(path):
        steps += 1
        if opened := _keys(entry["opened"]):
            last_opened = set(opened)
            _refuse(path, entry, seen & last_opened, "opened twice")
            seen |= last_opened
        found = [(key, "used") for key in _keys(entry["used"])]
        for fate in ("dropped", "quarantined"):
            found += [(SampleKey(*drop[:3]), fate) for drop in entry[fate]]
            reasons[fate].update(drop[5].partition(":")[0] for drop in entry[fate])
        for key, fate in found:
            _refuse(path, entry, {key} & fates.keys(), "given a second fate")
            fates[key] = fate
        _refuse(path, entry, {key for key, _ in found} - seen, "given a fate without being seen")
    waiting = seen - fates.keys()
    _refuse(path, {"step": steps}, waiting - last_opened, "left without a fate")
    return Account(
        steps=steps,
        seen=len(seen),
        used=sum(fate == "used" for fate in fates.values()),
        dropped=dict(reasons["dropped"]),
        quarantined=dict(reasons["quarantined"]),
        waiting=len(waiting),
    )


def _valid_steps(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of steps that were not taken back."""
    steps: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            follower = lines[number] if number < len(lines) else ""
            if "resumed_at" in follower or not follower:
                continue  # cut by a kill
            raise explain(what=f"not a line of a ledger: {error}", where=f"{path}, line {number}",
                          fix="restore the file; it is written by the run alone") from error  # fmt: skip
        if "resumed_at" in entry:
            steps = [step for step in steps if step["step"] <= entry["resumed_at"]]
        else:
            steps.append(entry)
    yield from steps


def _keys(by_epoch: dict[str, list[int]]) -> list[SampleKey]:
    keys: list[SampleKey] = []
    for name, indices in by_epoch.items():
        phase, epoch = map(int, name.split("/"))
        keys += [SampleKey(phase, epoch, index) for index in indices]
    return keys


def _refuse(path: Path, entry: dict[str, Any], wrong: set[SampleKey], what: str) -> None:
    if wrong:
        raise explain(
            what=f"{len(wrong)} samples were {what}, for example {tuple(min(wrong))} (phase, epoch, index)",
            where=f"{path}, step {entry['step']}",
            fix="report this: used, dropped and quarantined must add up to what was seen",
        )
