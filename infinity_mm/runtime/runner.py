"""Run passes one after the other: skip what is committed, finish what is not, check that nothing was lost.

pass --fingerprint as committed?--> skip
     --else--> units not yet committed --executor--> entries --check_pass--> pass.json --> next pass
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from infinity_mm.errors import BudgetSpentError, explain
from infinity_mm.record import SCHEMA_VERSION, canonical_json, digest
from infinity_mm.runtime.budget import Bank, BudgetConfig
from infinity_mm.runtime.events import (
    Listener,
    PassCommitted,
    PassSkipped,
    PassStarted,
    UnitDone,
    UnitsUnderWay,
)
from infinity_mm.runtime.executors import Executor
from infinity_mm.runtime.ledger import COUNTS, Parts, check_pass, check_sums, read_ledger
from infinity_mm.runtime.link import Report
from infinity_mm.runtime.lock import Held, run_lock
from infinity_mm.runtime.passes import Pass, Unit
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.work import Done, Failed, PassWork, Waiting
from infinity_mm.storage import manifest
from infinity_mm.storage.manifest import Entry, Manifest


@dataclass(frozen=True, kw_only=True)
class PassSummary:
    """What one pass did."""

    name: str
    skipped: bool
    """True if an earlier call had committed it."""
    num_units: int
    num_worked: int
    """Units worked by this call."""
    totals: Mapping[str, int]
    """Counts over all units; see `ledger.settle_unit`."""
    metrics: Mapping[str, float]
    """Metrics over all units."""
    phase_s: float
    """Wall time in this call."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What `run_passes` did."""

    passes: tuple[PassSummary, ...]

    @property
    def phase_s(self) -> dict[str, float]:
        """Wall time of this call, by pass."""
        return {summary.name: summary.phase_s for summary in self.passes}


def run_passes(
    passes: Sequence[Pass],
    run: Run,
    executor: Executor,
    on_event: Listener | None = None,
    budget: BudgetConfig | None = None,
) -> RunSummary:
    """Bring every pass to its committed state; calling it again after any kill goes on where it was.

    Stops at the first unit that fails, and raises what that unit raised; what is committed stays. At a limit of the
    budget it stops with `BudgetSpentError`, once replies that are paid for have come and are recorded.
    """
    tell: Listener = on_event or (lambda event: None)
    names = [pass_.name for pass_ in passes]
    _check_names(names, what="pass")
    summaries: list[PassSummary] = []
    with run_lock(run.path("lock")) as lock, closing(Bank(budget or BudgetConfig(), run.run_dir)) as bank:
        before: Manifest | None = None
        for pass_ in passes:
            start = time.monotonic()
            fingerprint = _fingerprint(pass_, before)
            committed = run.manifest(pass_.name)
            num_worked = 0
            if committed is not None and committed.fingerprint == fingerprint:
                skipped = True
                tell(PassSkipped(pass_name=pass_.name, totals=committed.totals))
            else:
                skipped = False
                manifest.withdraw(run.run_dir, {pass_.name})
                committed, num_worked = _work_pass(
                    pass_, run, executor, tell, lock, bank, fingerprint, before, start
                )
                tell(PassCommitted(pass_name=pass_.name, totals=committed.totals, seconds=committed.seconds))
            summaries.append(
                PassSummary(
                    name=pass_.name,
                    skipped=skipped,
                    num_units=len(committed.units),
                    num_worked=num_worked,
                    totals=committed.totals,
                    metrics=committed.metrics,
                    phase_s=time.monotonic() - start,
                )
            )
            before = committed
    return RunSummary(passes=tuple(summaries))


def _work_pass(
    pass_: Pass,
    run: Run,
    executor: Executor,
    tell: Listener,
    lock: Held,
    bank: Bank,
    fingerprint: str,
    before: Manifest | None,
    start: float,
) -> tuple[Manifest, int]:
    units = list(pass_.units(run))
    _check_names([unit.id for unit in units], what=f"unit of pass {pass_.name}")
    generation = _generation(fingerprint, units)
    done = manifest.committed_units(run.run_dir, pass_.name, generation)
    todo = [unit for unit in units if unit.id not in done]
    tell(
        PassStarted(
            pass_name=pass_.name,
            num_units=len(units),
            num_done=len(units) - len(todo),
            num_inputs=None if before is None else before.totals["out"],
        )
    )
    if todo:
        _work_units(
            PassWork(pass_=pass_, run=run, generation=generation, budget=bank.config),
            todo,
            executor,
            tell,
            lock,
            bank,
        )
    entries = [manifest.read_entry(run.run_dir, pass_.name, generation, unit.id) for unit in units]
    totals = _added([entry.counts for entry in entries], keys=COUNTS)
    check_sums(f"pass {pass_.name}", totals)
    check_pass(
        pass_.name,
        _parts(run, entries),
        before=None if before is None else _parts(run, list(manifest.entries(run.run_dir, before))),
    )
    committed = Manifest(
        pass_name=pass_.name,
        fingerprint=fingerprint,
        generation=generation,
        units=tuple(unit.id for unit in units),
        totals=totals,
        metrics=_added([_metrics(run, entry) for entry in entries]),
        content=manifest.content_hash(entries),
        after=None if before is None else before.pass_name,
        seconds=time.monotonic() - start,
    )
    lock.check()
    manifest.commit_pass(run.run_dir, committed)
    return committed, len(todo)


def _work_units(
    work: PassWork, units: Sequence[Unit], executor: Executor, tell: Listener, lock: Held, bank: Bank
) -> None:
    name = work.pass_.name
    is_spent = False
    bank.check_time()
    with closing(executor.map(work, units)) as outcomes:
        for outcome in outcomes:
            lock.check()
            bank.check_time()
            match outcome:
                case Done():
                    tell(
                        UnitDone(
                            pass_name=name,
                            unit=outcome.unit,
                            counts=outcome.counts,
                            seconds=outcome.seconds,
                            metrics=outcome.metrics,
                        )
                    )
                case Failed(error=BudgetSpentError()):
                    is_spent = True  # and go on: other workers wait for replies that are paid for
                case Failed():
                    raise outcome.error
                case Waiting():
                    pass
                case Report():
                    _hear(outcome, name, tell, bank)
    if is_spent:
        raise bank.spent_error()


def _hear(report: Report, pass_name: str, tell: Listener, bank: Bank) -> None:
    if report.is_last:
        bank.close_worker(report.worker, spent=report.spent)
        return
    grant = bank.lend(report.worker, need=report.need, wish=report.wish)
    if report.answer is not None:
        report.answer(grant)
    if report.counts:
        tell(UnitsUnderWay(pass_name=pass_name, worker=report.worker, counts=report.counts))


def _fingerprint(pass_: Pass, before: Manifest | None) -> str:
    """Of the pass, of those before it, and of what they really put out: passes of two runs are never mixed."""
    base = ["", ""] if before is None else [before.fingerprint, before.content]
    return digest(str(SCHEMA_VERSION), pass_.name, pass_.fingerprint(), *base)


def _generation(fingerprint: str, units: Sequence[Unit]) -> str:
    """Units committed by an interrupted call count only if the pass is still cut into the same units."""
    return digest(fingerprint, canonical_json([[unit.id, unit.payload] for unit in units]))[:16]


def _parts(run: Run, entries: Sequence[Entry]) -> Parts:
    stored = [entry.objects["ledger"] for entry in entries]
    return lambda: (read_ledger(manifest.read_object(run.run_dir, part), where=part.path) for part in stored)


def _metrics(run: Run, entry: Entry) -> dict[str, float]:
    return json.loads(manifest.read_object(run.run_dir, entry.objects["metrics"]))


def _added(parts: Sequence[Mapping[str, Any]], *, keys: Sequence[str] = ()) -> dict[str, Any]:
    total: Counter[str] = Counter(dict.fromkeys(keys, 0))
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))


def _check_names(names: Sequence[str], *, what: str) -> None:
    for name in names:
        manifest.check_name(name, what=what)
    doubles = sorted(name for name, number in Counter(names).items() if number > 1)
    if doubles:
        raise explain(
            what=f"{what}: `{doubles[0]}` is there twice",
            where="run_passes",
            fix="give every pass, and every unit of a pass, its own name",
        )
