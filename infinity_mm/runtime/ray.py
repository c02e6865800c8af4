"""The Ray executor: one actor per worker, each with its own open pass worker and two units in flight.

units --> queue --> actor (open once, work, commit) --counts--> driver
             |                            \\--report a second--> driver --grant--> actor
             ^-- units of an actor that died, at most a few times, each alone on a worker
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, final

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from infinity_mm.errors import BudgetSpentError, UserError, explain
from infinity_mm.runtime.budget import REPORT_S, Amount, Grant
from infinity_mm.runtime.link import Report
from infinity_mm.runtime.passes import Unit
from infinity_mm.runtime.work import UNITS_IN_FLIGHT, Done, Failed, OpenWorker, Outcome, PassWork, Waiting

NODE_LOSS_S = 30.0
"""Longer than Ray takes to see that a node is gone."""
_log = logging.getLogger(__name__)


@final
class RayExecutor:
    """Works units in Ray actors, which are kept for the next pass until the executor is closed."""

    def __init__(
        self,
        *,
        num_workers: int,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0.0,
        memory_gb_per_worker: float = 0.0,
        max_attempts: int = 3,
        address: str | None = None,
    ) -> None:
        """As in `ExecutorConfig`."""
        self._num_workers = num_workers
        self._cpus = cpus_per_worker
        self._gpus = gpus_per_worker
        self._memory_bytes = int(memory_gb_per_worker * 2**30)
        self._address = address
        self._max_attempts = max_attempts
        self._idle: list[Any] = []
        self._started_ray = False

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        """Yield one result per unit, in the order in which they finish, and reports in between."""
        self._start_ray()
        return _Mapping(self, work, units, max_attempts=self._max_attempts).results(self._num_workers)

    def take_actor(self) -> tuple[Any, bool]:
        """Return an actor of an earlier pass, or start one; and whether it is new."""
        if self._idle:
            return self._idle.pop(), False
        actor = _Actor.options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            memory=self._memory_bytes or None,
            max_concurrency=UNITS_IN_FLIGHT + 3,  # a report that is waited for, a grant or another call
            scheduling_strategy="SPREAD",
        ).remote(self._cpus)
        return actor, True

    def give_actor(self, actor: Any) -> None:
        """Keep an actor whose pass worker is closed for the next pass."""
        self._idle.append(actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the actors back, and Ray too if it was started here."""
        for actor in self._idle:
            ray.kill(actor)
        self._idle.clear()
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    def _start_ray(self) -> None:
        needed = self._num_workers * self._cpus
        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS") or "local"
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if address == "local":
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a private cluster phones nobody
                quiet |= {"include_dashboard": False, "num_cpus": max(needed, os.cpu_count() or 1)}
                quiet |= {"object_store_memory": 100 * 2**20}  # only units and counts go through it
            ray.init(address=address, **quiet)
            self._started_ray = True
        there = ray.cluster_resources().get("CPU", 0)
        if there < needed:
            fit = int(there // self._cpus)
            _log.warning(
                "The Ray cluster has %d CPUs, enough for %d of %d workers with %d CPUs each: the others wait for more.",
                there,
                fit,
                self._num_workers,
                self._cpus,
            )


@ray.remote
class _Actor:
    """One worker process."""

    def __init__(self, num_threads: int) -> None:
        # Before anything can import torch, which has one thread in a Ray worker otherwise. Not through Ray's
        # runtime_env: that would start a process of its own beside the ones Ray has ready.
        os.environ["OMP_NUM_THREADS"] = str(num_threads)

    async def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def open(self, work: PassWork) -> Exception | None:
        try:
            self._worker = OpenWorker(work)
            await self._worker.open()
        except Exception as error:
            return _portable(error)
        return None

    async def work(self, unit: Unit, reopen: PassWork | None = None) -> Done | Failed:
        if reopen is not None:
            problem = await self.close() or await self.open(reopen)
            if problem is not None:
                return Failed(unit=unit.id, error=problem)
        outcome = await self._worker.work(unit)
        if isinstance(outcome, Failed):
            return Failed(unit=outcome.unit, error=_portable(outcome.error))
        return outcome

    async def report(self) -> Report:
        return await self._worker.link.report()

    async def receive(self, grant: Grant) -> None:
        self._worker.link.receive(grant)

    async def close(self) -> Exception | None:
        try:
            await self._worker.close()
        except Exception as error:
            return _portable(error)
        return None


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else one that says the same; the traceback goes with it as a note."""
    error.add_note("in a Ray worker:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error):
            return error
    except (
        Exception
    ) as problem:  # any class may break here in any way: the message must get through all the same
        error.add_note(f"(and it could not be pickled: {problem})")
    notes = "\n".join(getattr(error, "__notes__", []))
    return RuntimeError(f"{type(error).__name__}: {error}\n{notes}")


@dataclass(eq=False)
class _Worker:
    """An actor as the driver sees it."""

    actor: Any
    is_new: bool
    """Whether it was started for this pass."""
    node: str | None = None
    """Id of the node it is on, once it runs."""
    name: str | None = None
    """Under which it reports, once it has."""
    units: list[Unit] = field(default_factory=list)
    """Units in flight."""
    is_open: bool = False
    num_deaths: int = 0
    """How many workers had died when this one was opened: what they left in the journal it has read."""


@final
class _Mapping:
    """One pass over the units: who works on what, and what to do when a worker dies."""

    def __init__(
        self, owner: RayExecutor, work: PassWork, units: Sequence[Unit], *, max_attempts: int
    ) -> None:
        self._owner = owner
        self._work = ray.put(work)
        self._pass_name = work.pass_.name
        self._fresh = deque(units)
        self._again: deque[Unit] = deque()
        """Units whose worker died."""
        self._came_back: set[str] = set()
        """Ids of them all: worked alone, so that the one that kills is told from its neighbours."""
        self._deaths: dict[str, list[_Worker]] = defaultdict(list)
        """Of a unit, the workers that died under it."""
        self._max_attempts = max_attempts
        self._failed_opens: list[_Worker] = []
        """New workers that died since one was last opened."""
        self._num_deaths = 0
        self._busy: dict[Any, tuple[_Worker, Unit | Literal["node", "open", "report"]]] = {}
        """What each pending reference stands for: a unit, where the worker is, its opening, or its next report."""

    def results(self, num_workers: int) -> Generator[Outcome, None, None]:
        """Yield results until all units are done; actors still opening or working then are killed."""
        workers: set[_Worker] = set()
        try:
            for _ in range(min(num_workers, len(self._fresh))):
                workers.add(self._start())
            while self._fresh or self._again or any(worker.units for worker in workers):
                # Never without end: who listens has limits of time to keep while workers load or wait for a node.
                ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=REPORT_S)
                if not ready:
                    yield Waiting()
                    continue
                (ref,) = ready
                worker, job = self._busy[ref]
                try:
                    outcome: Any = ray.get(ref)
                except RayTaskError as error:  # nothing that another worker would mend
                    if job == "open":
                        raise self._cannot_load(error) from error
                    raise
                except RayError as error:
                    workers.discard(worker)
                    yield from self._bury(worker, error)
                    if self._fresh or self._again:
                        workers.add(self._start())
                else:
                    del self._busy[ref]
                    if isinstance(job, Unit):
                        worker.units.remove(job)
                        if isinstance(outcome, Failed) and isinstance(outcome.error, BudgetSpentError):
                            self._fresh.clear()  # units under way come to their end; no other is begun
                            self._again.clear()
                        yield outcome
                    elif job == "report":
                        worker.name = outcome.worker
                        yield replace(outcome, answer=worker.actor.receive.remote)
                        self._listen(worker)
                    elif job == "node":
                        worker.node = outcome
                    elif outcome is None:
                        worker.is_open = True
                        self._failed_opens.clear()
                        self._listen(worker)
                    else:
                        raise outcome
                self._feed(workers)
            for worker in [worker for worker in workers if worker.is_open]:
                try:
                    problem: Any = ray.get(worker.actor.close.remote())
                    if problem is not None:
                        raise problem
                    last = self._last_report(worker)
                except RayTaskError:
                    raise
                except RayError as error:  # all units are committed: there is nothing left to lose
                    workers.discard(worker)
                    yield from self._bury(worker, error)
                else:
                    workers.discard(worker)
                    self._owner.give_actor(worker.actor)
                    yield last
        finally:
            for worker in workers:
                ray.kill(worker.actor)

    def _start(self) -> _Worker:
        actor, is_new = self._owner.take_actor()
        worker = _Worker(actor, is_new, num_deaths=self._num_deaths)
        self._busy[actor.node.remote()] = (worker, "node")
        self._busy[actor.open.remote(self._work)] = (worker, "open")
        return worker

    def _listen(self, worker: _Worker) -> None:
        self._busy[worker.actor.report.remote()] = (worker, "report")

    def _last_report(self, worker: _Worker) -> Report:
        """What a closed worker has spent in all; the report under way may be from before."""
        (ref,) = [ref for ref, job in self._busy.items() if job == (worker, "report")]
        del self._busy[ref]
        found: Any = ray.get(ref)
        return found if found.is_last else ray.get(worker.actor.report.remote())

    def _feed(self, workers: Iterable[_Worker]) -> None:
        """Hand out units. For each that came back, the least busy worker is left to come to its end and takes it."""
        waiting = len(self._again)
        free = [w for w in workers if w.is_open and not any(unit.id in self._came_back for unit in w.units)]
        for worker in sorted(free, key=lambda worker: len(worker.units)):
            if waiting:
                waiting -= 1
                if not worker.units:
                    self._send(worker, self._again.popleft())
                continue
            while self._fresh and len(worker.units) < UNITS_IN_FLIGHT:
                self._send(worker, self._fresh.popleft())

    def _send(self, worker: _Worker, unit: Unit) -> None:
        worker.units.append(unit)
        # A unit that comes back was partly paid for by a worker that is dead; one opened before that does not know.
        is_behind = unit.id in self._came_back and worker.num_deaths < self._num_deaths
        if is_behind:
            worker.num_deaths = self._num_deaths
        self._busy[worker.actor.work.remote(unit, self._work if is_behind else None)] = (worker, unit)

    def _bury(self, worker: _Worker, error: RayError) -> Iterator[Failed | Report | Waiting]:
        """Forget a dead worker; its units are tried again, or reported if that was often enough."""
        with contextlib.suppress(RayError):
            ray.kill(worker.actor, no_restart=True)  # it may only be out of reach, and would go on working
        self._busy = {ref: job for ref, job in self._busy.items() if job[0] is not worker}
        self._num_deaths += 1
        num_units = len(worker.units)
        _log.warning("A worker of pass %s died; %d units are worked again", self._pass_name, num_units)
        if worker.name is not None:
            yield Report(worker=worker.name, need=Amount(), wish=Amount(), spent=None, is_last=True)
        if not worker.is_open and worker.is_new:
            self._failed_opens.append(worker)
            if (yield from self._is_enough(self._failed_opens, error)):
                raise self._died(
                    f"{self._max_attempts} workers died while opening pass `{self._pass_name}`", error
                )
        for unit in worker.units:
            self._came_back.add(unit.id)
            self._deaths[unit.id].append(worker)
            if (yield from self._is_enough(self._deaths[unit.id], error)):
                what = f"unit `{unit.id}` of pass `{self._pass_name}` took {self._max_attempts} workers down with it"
                yield Failed(unit=unit.id, error=self._died(what, error))
            else:
                self._again.append(unit)

    def _is_enough(self, dead: Sequence[_Worker], error: RayError) -> Generator[Waiting, None, bool]:
        """Whether so many workers died on nodes that live that another try is no use.

        A lost node first shows as a worker out of reach, and some time later as a lost node: that is waited for
        before anybody is blamed.
        """
        end = time.monotonic() + (NODE_LOSS_S if isinstance(error, ActorUnavailableError) else 0.0)
        while True:
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            if sum(worker.node is None or worker.node in alive for worker in dead) < self._max_attempts:
                return False
            if time.monotonic() >= end:
                return True
            time.sleep(REPORT_S)
            yield Waiting()

    def _cannot_load(self, error: RayTaskError) -> UserError:
        """What opening raises is returned, not raised: this is a pass that could not even be unpickled."""
        return explain(
            what=f"a Ray worker cannot load pass `{self._pass_name}`: {str(error).strip().splitlines()[-1]}",
            where="Ray worker process",
            fix="make the same code importable on every node: install it there, or use `ray job submit "
            "--working-dir .`",
        )

    def _died(self, what: str, error: RayError) -> UserError:
        return explain(
            what=what,
            where=str(error).strip().splitlines()[0],
            fix="most often memory: use smaller units or fewer workers; Ray's logs name the signal. "
            "Run the same command again to go on",
        )
