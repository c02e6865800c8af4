"""Bounded samples out of a stream: what is kept depends on seed and ids alone, not on order, shards or workers.

(key, row), (key, row), ... --Smallest(n)--> the n rows with the smallest keys, and how many there were
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import total_ordering
from typing import Any, final

from infinity_mm.record import digest


@total_ordering
@dataclass(frozen=True)
class _Last:
    """Turns a key around, because a heap gives its smallest."""

    key: tuple[Any, ...]

    def __lt__(self, other: _Last) -> bool:
        return self.key > other.key


@final
@dataclass
class Smallest:
    """Keeps the rows with the `size` smallest keys; a row is only made when it is kept, so memory is bounded."""

    size: int
    seen: int = 0
    """Rows offered so far."""
    _heap: list[tuple[_Last, Any]] = field(default_factory=list)

    def offer(self, key: tuple[Any, ...], make: Callable[[], Any]) -> None:
        """Count a row and keep it if its key is small enough; equal keys must not be offered twice."""
        self.seen += 1
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (_Last(key), make()))
        elif self.size and key < self._heap[0][0].key:
            heapq.heapreplace(self._heap, (_Last(key), make()))

    def __iter__(self) -> Iterator[Any]:
        """The rows, smallest key first."""
        return (row for _, row in sorted(self._heap, key=lambda item: item[0].key))

    def __len__(self) -> int:
        return len(self._heap)


def draw(seed: int, section: str, id_: str) -> str:
    """A uniform draw for an id: taking the smallest ones is sampling without replacement."""
    return digest("report", str(seed), section, id_)[:16]
