"""How sure a ratio is that was measured a few times: its geometric mean and Student's interval of 95 %."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

ROUNDS = range(2, 11)
"""How many measurements an interval is given for."""
_T_95 = dict(zip(ROUNDS, (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), strict=True))


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, geometric mean and upper end, of ratios from rounds that do not know of each other."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    wide = _T_95[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean - wide), math.exp(mean), math.exp(mean + wide)
