"""Two runs on the same images side by side: what each asked, kept and dropped, and how sure the difference is.

RUN_A, RUN_B --read_run--> image hash -> Work --common images--> Comparison: figures of A, of B, interval of B - A
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from infinity_mm.dedup.text import normalise
from infinity_mm.errors import explain
from infinity_mm.record import canonical_json
from infinity_mm.report.lookup import config_of
from infinity_mm.report.works import Shown, Work, read_run
from infinity_mm.runtime.run import Run

_RESAMPLES = 1000
_NAMES = ("name", "run_dir", "executor")
"""Keys that every run has of its own."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    a: float
    b: float
    low: float | None = None
    """Lower end of the 95 % interval of b - a, from resampling images; None where images do not add up."""
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it."""

    only_a: int
    """Images that only run A has pairs or ends for."""
    only_b: int
    common: dict[str, tuple[Work, Work]]
    """Image hash -> what each run made of it."""
    figures: tuple[Figure, ...]
    ends: dict[str, tuple[int, int]]
    """`stage: reason` -> questions and pairs of A, of B."""
    types: dict[str, tuple[int, int]]
    """Instruction type -> kept pairs of A, of B."""
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Key of the configuration -> its value in A, in B, where they differ."""
    simulated: tuple[bool, bool] = (False, False)
    """Whether A, B were made up by a simulated run: the shape of a run can be compared, its words cannot."""


def compare(run_a: str, run_b: str) -> Comparison:
    """Raises `UserError` if the runs have no image in common."""
    a, b = read_run(run_a), read_run(run_b)
    common = {sha256: (a[sha256], b[sha256]) for sha256 in sorted(a.keys() & b.keys())}
    if not common:
        raise explain(
            what=f"no image is in both runs: {len(a)} and {len(b)} images",
            where=f"{run_a}, {run_b}",
            fix="run both configurations on the same read.sources",
        )
    works = list(common.values())
    sides = ([left for left, _ in works], [right for _, right in works])
    return Comparison(
        only_a=len(a) - len(common),
        only_b=len(b) - len(common),
        common=common,
        figures=tuple(_figures(*sides)),
        ends=_both(*(Counter(one.end for work in side for one in work.ended) for side in sides)),
        types=_both(*(Counter(one.type for work in side for one in work.kept) for side in sides)),
        settings=_settings(run_a, run_b),
        simulated=(any(work.is_simulated for work in sides[0]), any(work.is_simulated for work in sides[1])),
    )


def _settings(run_a: str, run_b: str) -> dict[str, tuple[str, str]]:
    """Keys of the two configurations whose values differ, but for those that name the run or say how it is executed."""
    a, b = (dict(_flat(config_of(Run(run_dir)))) for run_dir in (run_a, run_b))
    keys = [key for key in sorted(a.keys() | b.keys()) if key.partition(".")[0] not in _NAMES]
    return {key: (a.get(key, ""), b.get(key, "")) for key in keys if a.get(key) != b.get(key)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """`{"ask": {"temperature": 0.7}}` as ("ask.temperature", "0.7")."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    else:
        yield key, canonical_json(value)


def _figures(a: Sequence[Work], b: Sequence[Work]) -> Iterator[Figure]:
    yield Figure(name="images", a=len(a), b=len(b))
    per_image: dict[str, Callable[[Work], tuple[float, float]]] = {
        "pairs kept an image": lambda work: (len(work.kept), 1),
        "share of questions and pairs kept": lambda work: (len(work.kept), len(work.kept) + len(work.ended)),
        "judge's score of kept pairs": lambda work: _sum(one.score for one in work.kept),
        "characters of a kept question": lambda work: _sum(len(one.question) for one in work.kept),
        "characters of a kept answer": lambda work: _sum(len(one.answer) for one in work.kept),
    }
    for name, figure in per_image.items():
        yield _ratio(name, [figure(work) for work in a], [figure(work) for work in b])
    kept = [[one for work in side for one in work.kept] for side in (a, b)]
    for name, whole in {
        "different questions, share": _different,
        "different word pairs in questions, share": _word_pairs,
        "instruction types covered": lambda pairs: len({one.type for one in pairs}),
        "spread over types, effective number": _effective_types,
    }.items():
        yield Figure(name=name, a=whole(kept[0]), b=whole(kept[1]))


def _sum(values: Iterator[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return sum(known), len(known)


def _ratio(name: str, a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> Figure:
    """Sum over sum on each side; the same images are drawn for both."""
    left_N2, right_N2 = np.array(a, dtype=float), np.array(b, dtype=float)
    picks_RN = np.random.default_rng(0).integers(len(a), size=(_RESAMPLES, len(a)))

    def share(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)

    drawn = share(right_N2[picks_RN].sum(axis=1)) - share(left_N2[picks_RN].sum(axis=1))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Figure(
        name=name,
        a=float(share(left_N2.sum(axis=0))),
        b=float(share(right_N2.sum(axis=0))),
        low=float(low),
        high=float(high),
    )


def _different(pairs: Sequence[Shown]) -> float:
    """Of the questions asked about all images together; the styles of one question count once."""
    asked = {(one.question, one.type) for one in pairs}
    return len({normalise(question) for question, _ in asked}) / len(asked) if asked else 0.0


def _word_pairs(pairs: Sequence[Shown]) -> float:
    words = [normalise(question).split() for question in {one.question for one in pairs}]
    found = [pair for line in words for pair in pairwise(line)]
    return len(set(found)) / len(found) if found else 0.0


def _effective_types(pairs: Sequence[Shown]) -> float:
    """Exponential of the entropy: as many types as would be covered evenly."""
    counts = Counter(one.type for one in pairs)
    total = counts.total()
    return math.exp(-sum(n / total * math.log(n / total) for n in counts.values())) if total else 0.0


def _both(a: Counter[str], b: Counter[str]) -> dict[str, tuple[int, int]]:
    names = sorted(a.keys() | b.keys(), key=lambda name: (-fmean((a[name], b[name])), name))
    return {name: (a[name], b[name]) for name in names}
