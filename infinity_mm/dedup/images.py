"""Perceptual hashes of images and the exact search for pairs of hashes that differ in few bits.

picture --32x32 grey, DCT, lowest 8x8 against their median--> 64 bits
n hashes --equal bands--> candidate pairs --count bits--> pairs within the radius
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 32
_LOW = 8
_POPCOUNT = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)
_CHUNK_PAIRS = 1 << 22
"""Candidate pairs held in memory at a time."""


def _dct_rows() -> NDArray[np.float64]:
    """The first rows of the unnormalised DCT-II, as scipy and imagehash compute it."""
    k, n = np.arange(_LOW)[:, None], np.arange(_SIDE)[None, :]
    return 2 * np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE))


_DCT = _dct_rows()


def phash(picture: Image.Image) -> str:
    """64-bit DCT hash as 16 hex digits, the same bits as `imagehash.phash`.

    Coefficients are rounded to 1e-6 before they are compared. In a picture that is flat or mirrored some are
    exactly zero or exactly equal; imagehash then decides their bits by rounding noise, here they are always 0.
    """
    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = np.round(_DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T, 6)
    return np.packbits(low > np.median(low)).tobytes().hex()


def near_pairs(hashes: Sequence[str], radius: int) -> NDArray[np.int64]:
    """All pairs (i, j), i < j, whose hashes differ in at most `radius` bits, sorted; shape (pairs, 2).

    Exact: cut into `radius + k` bands, two hashes within the radius agree in at least k of them, so every pair
    is met in a table of hashes that are equal on some k bands. k is chosen from the number of hashes.
    """
    if not 0 <= radius < 32:
        raise ValueError(f"radius={radius} is outside 0 to 31: beyond it nearly everything is a neighbour")
    words = np.array([int(text, 16) for text in hashes], dtype=np.uint64)
    distinct, inverse = np.unique(words, return_inverse=True)
    members = _members(inverse, len(distinct))
    found = [np.empty((0, 2), dtype=np.int64)]
    found += [_within(group) for group in members if len(group) > 1]
    found += [_across(members[a], members[b]) for a, b in near_words(distinct, radius).tolist()]
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of different bits, element by element."""
    return _POPCOUNT[(a ^ b).view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


def choose_bands(num_hashes: int, radius: int) -> int:
    """How many of `radius + k` bands must agree: the k with the least sorting plus expected candidates."""

    def cost(k: int) -> float:
        tables = math.comb(radius + k, k)
        key_bits = 64 * k / (radius + k)
        return tables * (20.0 * num_hashes + num_hashes**2 / 2 ** (key_bits + 1))

    return min(range(1, 8), key=cost)


def near_words(words: NDArray[np.uint64], radius: int) -> NDArray[np.int64]:
    """All pairs (i, j), i < j, of different words that differ in at most `radius` bits; shape (pairs, 2)."""
    nothing = np.empty((0, 2), dtype=np.int64)
    if radius == 0 or len(words) < 2:
        return nothing
    k = choose_bands(len(words), radius)
    masks = _band_masks(radius + k)
    found = [nothing]
    for chosen in combinations(masks, k):
        key = words & np.bitwise_or.reduce(np.array(chosen, dtype=np.uint64))
        order = np.argsort(key, kind="stable")
        for left, right in _equal_key_pairs(key[order]):
            a, b = order[left], order[right]
            near = hamming(words[a], words[b]) <= radius
            low, high = np.minimum(a, b)[near], np.maximum(a, b)[near]
            found.append(np.stack([low, high], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _band_masks(num_bands: int) -> list[np.uint64]:
    edges = [round(64 * band / num_bands) for band in range(num_bands + 1)]
    return [np.uint64(((1 << high) - 1) ^ ((1 << low) - 1)) for low, high in pairwise(edges)]


def _equal_key_pairs(key: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions (left, right) of equal neighbours in a sorted array, by distance, in bounded chunks.

    Distance 1 compares each element with the next, distance 2 with the one after, until no group is that long.
    """
    left = np.arange(len(key), dtype=np.int64)
    for distance in range(1, len(key)):
        left = left[left + distance < len(key)]
        left = left[key[left] == key[left + distance]]
        if not len(left):
            return
        for start in range(0, len(left), _CHUNK_PAIRS):
            part = left[start : start + _CHUNK_PAIRS]
            yield part, part + distance


def _members(inverse: NDArray[np.int64], num_groups: int) -> list[NDArray[np.int64]]:
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse, minlength=num_groups))[:-1])


def _within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    first, second = np.triu_indices(len(group), k=1)
    return np.stack([group[first], group[second]], axis=1)


def _across(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([np.repeat(a, len(b)), np.tile(b, len(a))], axis=1)
