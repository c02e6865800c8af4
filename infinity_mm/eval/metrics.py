"""Small statistics that evaluations share."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Chance that a random positive scores above a random negative, ties counted half; None if a side is empty."""
    if not positives or not negatives:
        return None
    ordered = sorted(negatives)
    wins = sum(
        0.5 * (bisect.bisect_left(ordered, value) + bisect.bisect_right(ordered, value))
        for value in positives
    )
    return wins / (len(positives) * len(negatives))
