"""The local executor: all units in this process, a few in flight; what tests and small runs use."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Self, final

from infinity_mm.errors import BudgetSpentError
from infinity_mm.runtime.budget import REPORT_S
from infinity_mm.runtime.link import Report
from infinity_mm.runtime.passes import Unit
from infinity_mm.runtime.work import UNITS_IN_FLIGHT, Failed, OpenWorker, Outcome, PassWork, Waiting

_Task = asyncio.Task[Any]
"""Of a unit, or of the worker's next report."""


@final
class LocalExecutor:
    """One worker, in this process."""

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        """Yield one result per unit, in the order in which they finish, and reports in between."""
        queue = iter(units)
        pending: set[_Task] = set()
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            worker = OpenWorker(work)
            opening = loop.create_task(worker.open())
            while not opening.done():
                runner.run(_first({opening}, timeout=REPORT_S))
                yield Waiting()
            opening.result()
            report = loop.create_task(worker.link.report())
            try:
                while True:
                    while len(pending) < UNITS_IN_FLIGHT and (unit := next(queue, None)) is not None:
                        pending.add(loop.create_task(worker.work(unit)))
                    if not pending:
                        break
                    finished, _ = runner.run(_first(pending | {report}))
                    pending -= finished
                    for task in finished - {report}:
                        outcome = task.result()
                        if isinstance(outcome, Failed) and isinstance(outcome.error, BudgetSpentError):
                            queue = iter(())  # those under way come to their end; no other is begun
                        yield outcome
                    if report in finished:
                        yield replace(report.result(), answer=worker.link.receive)
                        report = loop.create_task(worker.link.report())
            finally:
                runner.run(_cancel(pending))
                runner.run(worker.close())
            yield runner.run(_last(report, worker))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to give back."""


async def _first(tasks: set[_Task], timeout: float | None = None) -> tuple[set[_Task], set[_Task]]:
    return await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _last(report: asyncio.Task[Report], worker: OpenWorker) -> Report:
    """What a closed worker has spent in all; the report under way may be from before."""
    found = await report
    return found if found.is_last else await worker.link.report()


async def _cancel(tasks: set[_Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
