"""A random order of n items that needs no array of n: any part of it in memory of that part's size.

A Feistel network is a bijection on 2^(2b) numbers, whatever its round function; walking along it until a number
below n comes up restricts the bijection to n items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4


def permute(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """The items at `places` of a permutation of `range(size)` chosen by `key`."""
    assert ((places >= 0) & (places < size)).all()
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    items = places.astype(np.uint64)
    outside = np.ones(len(items), dtype=bool)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        while outside.any():
            left, right = items[outside] >> half, items[outside] & low
            for number in range(_ROUNDS):
                offset = np.uint64((number << 32) + key & ((1 << 64) - 1))
                left, right = right, left ^ (_mix(right + offset) & low)
            items[outside] = (left << half) | right
            outside = items >= size
    return items.astype(np.int64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
