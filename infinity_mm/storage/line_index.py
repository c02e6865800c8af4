"""Where lines lie, by key: 16 bytes a line whatever its length, so that a week of replies fits beside a worker.

key, file, offset --newest few thousand--> dictionary --sort--> arrays of (hash, place), small ones merged as they grow
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

_MOST_RECENT = 1 << 15
"""Lines held in a dictionary, at about 300 bytes each, before they are sorted into an array."""
_OFFSET_BITS = 40
"""Of a place; the bits above are the number of the file."""


@final
class LineIndex:
    """Key -> where its lines are, the first added first. It holds hashes: whoever reads a line compares the key."""

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []
        """(hashes, places), sorted by hash and within a hash as they came; what is in an earlier one came earlier."""
        self._files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._num_keys = 0
        """In the levels."""

    def __len__(self) -> int:
        """Number of keys; two whose 64-bit hashes are equal count as one."""
        self._sort_recent()
        return self._num_keys

    def add(self, key: bytes, file: str, offset: int) -> None:
        """Remember a line; one that has the key already keeps its place before it."""
        number = self._numbers.setdefault(file, len(self._files))
        if number == len(self._files):
            self._files.append(file)
        self._recent.setdefault(key, number << _OFFSET_BITS | offset)
        if len(self._recent) >= _MOST_RECENT:
            self._sort_recent()

    def find(self, key: bytes) -> list[tuple[str, int]]:
        """(file, offset) of every line that may have the key, in the order in which they were added."""
        hash_ = hash(key)
        places: list[int] = []
        for hashes, level in self._levels:
            at = int(np.searchsorted(hashes, hash_))
            while at < len(hashes) and hashes[at] == hash_:
                places.append(int(level[at]))
                at += 1
        if (recent := self._recent.get(key)) is not None:
            places.append(recent)
        return [(self._files[place >> _OFFSET_BITS], place & ((1 << _OFFSET_BITS) - 1)) for place in places]

    def _sort_recent(self) -> None:
        if not self._recent:
            return
        hashes = np.fromiter(map(hash, self._recent), np.int64, len(self._recent))
        places = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
        self._recent = {}
        order = np.argsort(hashes, kind="stable")
        hashes, places = hashes[order], places[order]
        is_new = np.ones(len(hashes), bool)
        is_new[1:] = hashes[1:] != hashes[:-1]
        for earlier, _ in self._levels:
            at = np.minimum(np.searchsorted(earlier, hashes), len(earlier) - 1)
            is_new &= earlier[at] != hashes
        self._num_keys += int(is_new.sum())
        self._levels.append((hashes, places))
        # Each at least twice as long as the next: few to search, and a line is copied a few times, not every time.
        while len(self._levels) > 1 and len(self._levels[-2][0]) < 2 * len(self._levels[-1][0]):
            later, earlier = self._levels.pop(), self._levels.pop()
            self._levels.append(_merged(earlier, later))


def _merged(
    earlier: tuple[NDArray[np.int64], NDArray[np.uint64]], later: tuple[NDArray[np.int64], NDArray[np.uint64]]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    at = np.searchsorted(earlier[0], later[0], side="right")
    return np.insert(earlier[0], at, later[0]), np.insert(earlier[1], at, later[1])
