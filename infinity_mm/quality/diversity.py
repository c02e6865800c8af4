"""How different the questions of a set are: their types, their words, and their texts as wholes.

(id, type, question) *--Gauge--> Diversity    types: of all; words and texts: of at most 10,000

A share of distinct n-grams falls as a set grows, so such figures of two sets are comparable where as many questions
were measured.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from infinity_mm.dedup.text import normalise
from infinity_mm.record import digest
from infinity_mm.report.pools import Smallest

MOST_MEASURED = 10_000
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_BUCKETS = 4096


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Figures of one set of questions."""

    questions: int
    """All of them; the answers of one question in several styles count it once."""
    types: int
    """Instruction types that have a question."""
    type_entropy_bits: float
    """Entropy of the shares of the types."""
    effective_types: float
    """As many types of equal share have that entropy."""
    measured: int
    """Questions the figures below are of."""
    distinct_1: float
    """Different words as a share of all words."""
    distinct_2: float
    """The same for pairs of neighbours."""
    distinct_3: float
    """And for three in a row."""
    dispersion: float
    """1 minus the mean cosine of two questions, each the counts of its character triples, hashed: 0 where all are the
    same text, near 1 where they share no spelling. It sees words, not what they mean."""


@final
class Gauge:
    """Takes questions one by one, in any order."""

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()
        self._sample = Smallest(MOST_MEASURED)

    def add(self, id_: str, type_: str, question: str) -> None:
        """Count one question; an id must not come twice."""
        self._types[type_] += 1
        self._sample.offer((digest("diversity", id_)[:16], id_), lambda: question)

    def read(self) -> Diversity:
        """The figures so far."""
        texts = list(self._sample)
        bits = entropy_bits(self._types.values())
        distinct = [distinct_share(texts, n) for n in (1, 2, 3)]
        return Diversity(
            questions=self._types.total(),
            types=len(self._types),
            type_entropy_bits=round(bits, 4),
            effective_types=round(2**bits, 2) if self._types else 0.0,
            measured=len(texts),
            distinct_1=round(distinct[0], 4),
            distinct_2=round(distinct[1], 4),
            distinct_3=round(distinct[2], 4),
            dispersion=round(dispersion(texts), 4),
        )


def entropy_bits(counts: Iterable[int]) -> float:
    """Entropy of the shares; 0 for one kind, and for none."""
    numbers = [number for number in counts if number]
    total = sum(numbers)
    return -sum(number / total * math.log2(number / total) for number in numbers) + 0.0


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Different runs of n words as a share of all of them; Chinese and Japanese characters are words."""
    runs: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = _WORD.findall(normalise(text))
        runs.update(zip(*(words[start:] for start in range(n))))
    return len(runs) / runs.total() if runs else 0.0


def dispersion(texts: Sequence[str]) -> float:
    """1 minus the mean cosine over all pairs of texts, from the length of the sum of their unit vectors."""
    if len(texts) < 2:
        return 0.0
    total = np.zeros(_BUCKETS)
    for text in texts:
        total += _unit(normalise(text))
    mean = (float(total @ total) - len(texts)) / (len(texts) * (len(texts) - 1))
    return max(0.0, 1.0 - mean)


def _unit(normal: str) -> np.ndarray:
    padded = f" {normal} "
    triples = Counter(padded[start : start + 3] for start in range(max(1, len(padded) - 2)))
    vector = np.zeros(_BUCKETS)
    for triple, number in triples.items():
        vector[zlib.crc32(triple.encode()) % _BUCKETS] += number
    return vector / np.linalg.norm(vector)
