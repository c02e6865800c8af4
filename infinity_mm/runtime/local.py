"""The local executor: all units in this process, a few in flight; what tests and small runs use."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Self, final

from infinity_mm.runtime.passes import Unit
from infinity_mm.runtime.work import UNITS_IN_FLIGHT, Done, Failed, OpenWorker, PassWork

_Task = asyncio.Task[Done | Failed]


@final
class LocalExecutor:
    """One worker, in this process."""

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Done | Failed, None, None]:
        """Yield one result per unit, in the order in which they finish."""
        queue = iter(units)
        pending: set[_Task] = set()
        with asyncio.Runner() as runner:
            worker = OpenWorker(work)
            runner.run(worker.open())
            try:
                while True:
                    while len(pending) < UNITS_IN_FLIGHT and (unit := next(queue, None)) is not None:
                        pending.add(runner.get_loop().create_task(worker.work(unit)))
                    if not pending:
                        break
                    finished, pending = runner.run(_first(pending))
                    for task in finished:
                        yield task.result()
            finally:
                runner.run(_cancel(pending))
                runner.run(worker.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to give back."""


async def _first(tasks: set[_Task]) -> tuple[set[_Task], set[_Task]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(tasks: set[_Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
