"""Executors map the units of a pass over workers; which one is configuration, and never shows in the output."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

from infinity_mm.errors import explain, need
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.passes import Unit
from infinity_mm.runtime.work import Outcome, PassWork


@runtime_checkable
class Executor(Protocol):
    """Works units somewhere and commits each of them there; a context manager that gives workers back."""

    def map(self, work: PassWork, units: Sequence[Unit]) -> Generator[Outcome, None, None]:
        """Yield one result per unit, in the order in which they finish; closing the iterator stops the rest.

        In between come reports, about one a second from each worker, whose `answer` takes the driver's grant, and at
        least once a second something; after a unit that the budget stopped no other is begun.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Where a run is worked. None of it changes the output."""

    kind: Literal["local", "ray"] = "local"
    """`local` works in this process; `ray` in actors, on this machine or a cluster."""
    num_workers: int = 1
    """Ray actors, each with its own open pass worker."""
    cpus_per_worker: int = 1
    """Cores each worker reserves and may use (OMP_NUM_THREADS)."""
    gpus_per_worker: float = 0.0
    """GPUs each worker reserves, for engines that run inside it; without a reservation Ray hides them."""
    memory_gb_per_worker: float = 0.0
    """Memory each worker reserves, in GiB, so that Ray starts no more of them on a node than fit; it is no limit."""
    max_attempts: int = 3
    """How often a unit may be started on workers that die under it; a node that is lost does not count."""
    address: str | None = None
    """Ray cluster: `auto` or an address; None is the cluster of a submitted job, else a private one on this machine."""

    def __post_init__(self) -> None:
        if self.memory_gb_per_worker < 0 or self.max_attempts < 1:
            raise explain(
                what=f"memory_gb_per_worker={self.memory_gb_per_worker}, max_attempts={self.max_attempts}",
                where="executor (configuration)",
                fix="set memory_gb_per_worker to 0 for no reservation or above, and max_attempts to at least 1",
            )
        if self.num_workers < 1 or self.cpus_per_worker < 1 or self.gpus_per_worker < 0:
            raise explain(
                what=f"{self.num_workers} workers with {self.cpus_per_worker} CPUs, {self.gpus_per_worker} GPUs",
                where="executor (configuration)",
                fix="set num_workers and cpus_per_worker to at least 1, and gpus_per_worker to at least 0",
            )


def make_executor(config: ExecutorConfig) -> Executor:
    """Build the executor; nothing is started before the first unit."""
    if config.kind == "local":
        return LocalExecutor()
    try:
        from infinity_mm.runtime.ray import RayExecutor
    except ModuleNotFoundError as error:
        raise need("ray", extra="synth", purpose="executor.kind=ray") from error
    return RayExecutor(
        num_workers=config.num_workers,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus_per_worker,
        memory_gb_per_worker=config.memory_gb_per_worker,
        max_attempts=config.max_attempts,
        address=config.address,
    )
