"""Every sample's fate: what was opened, used, dropped, quarantined, and why; and the proof that nothing is missing.

steps --Ledger.write, one line each--> ledger.jsonl --account--> Account, or an error where sets do not agree

The file only grows. A run that goes on from a checkpoint says so in a line of its own, which takes back the steps
after that checkpoint, so that the account is exact after any number of kills.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from infinity_mm.data.loader import StepBatch
from infinity_mm.data.plan import Drop, SampleKey
from infinity_mm.errors import UserError, explain


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
    """Sum a ledger up; raises UserError when a sample has two fates, one without being seen, or none.

    In memory: one byte a use of a sample, and the line at hand.
    """
    uses = _Uses(path)
    reasons = {"dropped": Counter[str](), "quarantined": Counter[str]()}
    last_opened: list[SampleKey] = []
    steps = used = 0
    for entry in _valid_steps(path):
        steps, uses.step = steps + 1, entry["step"]
        if opened := _keys(entry["opened"]):
            last_opened = opened
            uses.open(opened)
        keys = _keys(entry["used"])
        used += len(keys)
        uses.settle(keys)
        for fate, counted in reasons.items():
            uses.settle([SampleKey(*drop[:3]) for drop in entry[fate]])
            counted.update(drop[5].partition(":")[0] for drop in entry[fate])
    return Account(
        steps=steps,
        seen=uses.opened,
        used=used,
        dropped=dict(reasons["dropped"]),
        quarantined=dict(reasons["quarantined"]),
        waiting=uses.waiting(last_opened),
    )


_UNSEEN, _OPEN, _SETTLED = range(3)


class _Uses:
    """What is known of each use of a sample: a byte by index, for each phase and epoch."""

    def __init__(self, path: Path) -> None:
        self.path, self.step, self.opened, self._settled = path, 0, 0, 0
        self._marks: defaultdict[tuple[int, int], bytearray] = defaultdict(bytearray)

    def open(self, keys: Sequence[SampleKey]) -> None:
        for key in keys:
            marks = self._marks[key[:2]]
            if key.index >= len(marks):
                marks.extend(bytes(key.index + 1 - len(marks)))
            if marks[key.index] != _UNSEEN:
                raise self._wrong(key, "opened twice")
            marks[key.index] = _OPEN
        self.opened += len(keys)

    def settle(self, keys: Sequence[SampleKey]) -> None:
        for key in keys:
            marks = self._marks[key[:2]]
            mark = marks[key.index] if key.index < len(marks) else _UNSEEN
            if mark != _OPEN:
                raise self._wrong(
                    key, "given a second fate" if mark == _SETTLED else "given a fate without being seen"
                )
            marks[key.index] = _SETTLED
        self._settled += len(keys)

    def waiting(self, last_opened: Sequence[SampleKey]) -> int:
        """Uses that are still open, all of them of the window opened last."""
        waiting = [key for key in last_opened if self._marks[key[:2]][key.index] == _OPEN]
        if len(waiting) < self.opened - self._settled:
            for key in waiting:
                self._marks[key[:2]][key.index] = _SETTLED
            (phase, epoch), marks = next(item for item in self._marks.items() if _OPEN in item[1])
            raise self._wrong(SampleKey(phase, epoch, marks.index(_OPEN)), "left without a fate")
        return len(waiting)

    def _wrong(self, key: SampleKey, what: str) -> UserError:
        return explain(
            what=f"sample {tuple(key)} (phase, epoch, index) was {what}",
            where=f"{self.path}, step {self.step}",
            fix="report this: used, dropped and quarantined must add up to what was seen",
        )


def _valid_steps(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of steps that were not taken back, one at a time."""
    places: list[tuple[int, int]] = []  # (step, where its line begins)
    place, cut = 0, None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if cut is not None and b"resumed_at" not in line:
                raise cut
            cut = None
            try:
                entry = json.loads(line)
            except ValueError as error:  # by a kill, if it is the last line or the run was resumed after it
                cut = explain(
                    what=f"not a line of a ledger: {error}",
                    where=f"{path}, line {number}",
                    fix="restore the file; it is written by the run alone",
                )
            else:
                if "resumed_at" in entry:
                    places = [(step, start) for step, start in places if step <= entry["resumed_at"]]
                else:
                    places.append((entry["step"], place))
            place += len(line)
        for _, start in places:
            file.seek(start)
            yield json.loads(file.readline())


def _keys(by_epoch: dict[str, list[int]]) -> list[SampleKey]:
    keys: list[SampleKey] = []
    for name, indices in by_epoch.items():
        phase, epoch = map(int, name.split("/"))
        keys += [SampleKey(phase, epoch, index) for index in indices]
    return keys
