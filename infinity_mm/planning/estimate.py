"""From what a few images took to what all will take, with an interval: pure arithmetic.

ImageCost* --columns--> N x K table --resample rows 1,000 times--> low, middle, high of every figure
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from infinity_mm.planning.gpus import Gpu, GpuTable, Size

KEPT = 1000
"""Costs are told for so many kept pairs."""
ROLES: tuple[str, ...] = ("teacher", "judge", "scorer")
_RESAMPLES = 1000
_COLUMNS = (
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "pairs_kept",
    *(f"{role}_{what}" for role in ROLES for what in ("read", "written")),
)
"""K: what is added up over images. `read` are prompt tokens without those of the prefix cache."""


@dataclass(frozen=True, kw_only=True)
class ImageCost:
    """What one image of the sample took."""

    calls: Mapping[str, float]
    """Stage -> requests."""
    prompt_tokens: Mapping[str, float]
    completion_tokens: Mapping[str, float]
    cached_tokens: Mapping[str, float] = field(default_factory=dict)
    """Stage -> prompt tokens that need not be read again, because the image was read before."""
    pairs_kept: float
    """Pairs that went into conversations."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its error bar: 95 % of the resampled figures lie between low and high."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> Interval:
        """All three, scaled."""
        return Interval(low=self.low * factor, middle=self.middle * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one kind of GPU makes of it."""

    gpus_per_server: int
    """As many as hold the largest model."""
    gpu_hours: Interval
    """Of the whole run."""
    gpu_hours_per_1000: Interval
    """Per 1,000 kept pairs."""
    usd_per_1000: Interval


class Sums:
    """Sums over the sample, and over 1,000 resamples of it: what one image takes says little about the next one."""

    def __init__(self, images: Sequence[ImageCost], *, roles: Mapping[str, str], seed: int = 0) -> None:
        """`roles`: stage -> the model it asks, the teacher where nothing is said."""
        table_NK = np.array([_row(image, roles) for image in images], dtype=float)
        picks_RN = np.random.default_rng(seed).integers(len(images), size=(_RESAMPLES, len(images)))
        counts_RN = np.apply_along_axis(np.bincount, 1, picks_RN, minlength=len(images))
        self.num_images = len(images)
        self._sums_RK: Float[np.ndarray, "R K"] = counts_RN @ table_NK
        self._sum_K: Float[np.ndarray, " K"] = table_NK.sum(axis=0)

    def interval(
        self, figure: Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.float64]]
    ) -> Interval:
        """The error bar of a function of the sums."""
        drawn = figure(dict(zip(_COLUMNS, self._sums_RK.T, strict=True)))
        middle = figure(dict(zip(_COLUMNS, self._sum_K, strict=True)))
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Interval(low=float(low), middle=float(middle), high=float(high))

    def total(self, column: str, num_images: float) -> Interval:
        """Of a run over so many images, from the mean of the sample."""
        return self.interval(lambda sums: sums[column] * (num_images / self.num_images))

    def cost(
        self, num_images: float, *, gpu: Gpu, table: GpuTable, sizes: Mapping[str, Size | None]
    ) -> Cost | None:
        """None if the size of a model is not known, or nothing was kept. `sizes`: role -> size, of the roles there are.

        A resample without a kept pair counts a tenth of a pair: dear, and not infinitely so.
        """
        known = {role: size for role, size in sizes.items() if size is not None}
        if len(known) < len(sizes) or not self._sum_K[_COLUMNS.index("pairs_kept")]:
            return None
        speeds = {role: table.speeds(gpu, size) for role, size in known.items()}

        def hours(sums: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
            seconds = np.zeros_like(sums["calls"])
            for role, (read_s, written_s) in speeds.items():
                seconds = seconds + sums[f"{role}_read"] * read_s + sums[f"{role}_written"] * written_s
            return seconds / 3600

        each = self.interval(lambda sums: KEPT * hours(sums) / np.maximum(0.1, sums["pairs_kept"]))
        return Cost(
            gpus_per_server=max(table.needed(gpu, size) for size in known.values()),
            gpu_hours=self.interval(lambda sums: hours(sums) * (num_images / self.num_images)),
            gpu_hours_per_1000=each,
            usd_per_1000=each.times(gpu.usd_per_hour),
        )


def _row(image: ImageCost, roles: Mapping[str, str]) -> list[float]:
    read = dict.fromkeys(ROLES, 0.0)
    written = dict.fromkeys(ROLES, 0.0)
    for stage in image.calls:
        role = roles.get(stage, "teacher")
        read[role] += max(0.0, image.prompt_tokens.get(stage, 0.0) - image.cached_tokens.get(stage, 0.0))
        written[role] += image.completion_tokens.get(stage, 0.0)
    return [
        sum(image.calls.values()),
        sum(image.prompt_tokens.values()),
        sum(image.completion_tokens.values()),
        image.pairs_kept,
        *(part[role] for role in ROLES for part in (read, written)),
    ]
