"""Items of a data set in a given order, made ahead in background processes.

indices --in_workers--> items, in the same order
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

T = TypeVar("T")


def in_workers(dataset: Dataset[T], indices: Iterator[Any], num_workers: int) -> Iterator[T]:
    """Items of `dataset` in the order of `indices`; 0 workers make them when asked, in this process."""
    return iter(
        DataLoader(
            dataset,
            sampler=_Order(indices),
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context="spawn" if num_workers else None,
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=_outlive_sigterm,
            collate_fn=_as_it_is,
        )
    )


class _Order(Sampler[Any]):
    """Hands given indices to a DataLoader, as they come."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[Any]:
        return self._indices


def _as_it_is(item: T) -> T:
    """torch would turn numbers into tensors and walk through every container."""
    return item


def _outlive_sigterm(worker: int) -> None:
    """A SIGTERM to the whole process group is for the trainer, which then saves and ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
