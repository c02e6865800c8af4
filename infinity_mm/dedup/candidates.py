"""Which conversations can have a duplicate at all, from numbers alone: texts are then compared among those few.

image hash --within the radius--> cluster --\
(question, answer) --meaning--> 64-bit key --> a key twice in one cluster? --yes--> both conversations are candidates
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from infinity_mm.dedup.counting import key_of
from infinity_mm.dedup.images import near_words


def pair_key(question: str, answer: str) -> int:
    """The same for pairs with this very answer and a question that means the same; of 64 bits."""
    asked = key_of(question).to_bytes(8, "big")
    return int.from_bytes(blake2b(asked + answer.encode(), digest_size=8).digest(), "big")


def may_repeat(
    conversations: Iterable[tuple[tuple[str, ...], Iterable[int]]], radius_bits: int
) -> NDArray[np.bool_]:
    """Of (hashes of the images, keys of the pairs): whether another one shows the same and has a pair in common.

    Shape (conversations,). Where it says no there is no duplicate, either way round. Only single perceptual hashes,
    of 16 hex digits, are compared by distance. Held are 13 bytes a conversation and 8 a pair; sorting takes about
    four times as much for a while.
    """
    images, keys, sizes, by_distance = array("Q"), array("Q"), array("I"), array("B")
    for hashes, pair_keys in conversations:
        is_word = len(hashes) == 1 and len(hashes[0]) == 16
        images.append(int(hashes[0], 16) if is_word else _digest(hashes))
        by_distance.append(is_word)
        before = len(keys)
        keys.extend(pair_keys)
        sizes.append(len(keys) - before)
    clusters = _clusters(np.array(images), np.array(by_distance, bool), radius_bits)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    # Two pairs that meet here by chance are only compared for nothing.
    meeting = np.array(keys) ^ (clusters[owners].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(meeting)
    equal = meeting[order][1:] == meeting[order][:-1]
    found = np.zeros(len(sizes), bool)
    found[owners[order[1:][equal]]] = True
    found[owners[order[:-1][equal]]] = True
    return found


def _clusters(
    images: NDArray[np.uint64], by_distance: NDArray[np.bool_], radius_bits: int
) -> NDArray[np.int64]:
    """A number for each image, equal where one leads to the other by steps within the radius."""
    words, word = np.unique(images[by_distance], return_inverse=True)
    others, other = np.unique(images[~by_distance], return_inverse=True)
    label = np.arange(len(words) + len(others))
    left, right = near_words(words, radius_bits).T
    while True:
        lower = label.copy()
        smaller = np.minimum(label[left], label[right])
        np.minimum.at(lower, left, smaller)
        np.minimum.at(lower, right, smaller)
        lower = lower[lower]
        if np.array_equal(lower, label):
            break
        label = lower
    number = np.empty(len(images), np.int64)
    number[by_distance], number[~by_distance] = word, len(words) + other
    return label[number]


def _digest(hashes: tuple[str, ...]) -> int:
    return int.from_bytes(blake2b("\0".join(hashes).encode(), digest_size=8).digest(), "big")
