"""A random order of n items that needs no array: item by item, in constant memory.

A Feistel network is a bijection on 2^(2b) numbers, whatever its round function; walking along it until a number
below n comes up restricts the bijection to n items.
"""

from __future__ import annotations

_ROUNDS = 4
_MASK = (1 << 64) - 1


def permute(index: int, size: int, key: int) -> int:
    """The item at place `index` of a permutation of `range(size)` chosen by `key`."""
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + (number << 32) + key) & low)
        index = (left << half) | right
        if index < size:
            return index


def _mix(value: int) -> int:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
