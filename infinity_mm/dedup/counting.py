"""How often a set asks the same question: two numbers per question, whatever its length, and one sort.

question --meaning--> 64-bit key --\
id of the question ----------------- > sort by key, then id --> the how-manieth use of its question each one is

Counted together is what has the same words that carry meaning in the same order (`dedup.text.meaning`): unlike a
distance, that is an equivalence, so the count does not depend on who is compared with whom. Two different questions
share a key with probability 2^-64: of 370,000 sets of ten million questions one is expected to have such a pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from infinity_mm.dedup.text import meaning, normalise

ID_BYTES = 24
"""Of an id, so much is sorted by: 16 digits of the image's hash and the number of the question."""


def key_of(question: str) -> int:
    """The same for questions that are counted together."""
    words = meaning(question) or ("", normalise(question))
    return int.from_bytes(blake2b("\0".join(words).encode(), digest_size=8).digest(), "big")


def use_numbers(questions: Iterable[tuple[str, str]]) -> NDArray[np.uint32]:
    """Of (id, question), in any order: 1 for the first of each question in id order, 2 for the second, ...

    At most 80 bytes a question are held, 0.8 GB for ten million.
    """
    rows = np.fromiter(
        ((key_of(question), id_.encode()[:ID_BYTES]) for id_, question in questions),
        dtype=[("key", np.uint64), ("id", f"S{ID_BYTES}")],
    )
    order = np.lexsort((rows["id"], rows["key"]))
    keys = rows["key"][order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    places = np.arange(len(keys), dtype=np.uint32)
    starts = np.maximum.accumulate(np.where(is_first, places, np.uint32(0)))
    numbers = np.empty(len(keys), np.uint32)
    numbers[order] = places - starts + 1
    return numbers
