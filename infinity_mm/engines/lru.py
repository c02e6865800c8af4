"""A least-recently-used cache bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar, final

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@final
class BytesLru(Generic[K, V]):
    """Keeps the values used last whose sizes sum to at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V | None:
        """The value, which now counts as just used."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: K, value: V, *, num_bytes: int) -> None:
        """Keep a value, in place of an older one of this key; one larger than the whole cache is not kept."""
        if key in self._held:
            self._bytes -= self._held.pop(key)[1]
        if num_bytes > self._max_bytes:
            return
        self._held[key] = (value, num_bytes)
        self._bytes += num_bytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._held.popitem(last=False)[1][1]
