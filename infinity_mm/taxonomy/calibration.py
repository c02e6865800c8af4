"""From a tagger's logits to probabilities: curves fitted on images whose true tags are known.

labels.jsonl --> logits of every tag, right or wrong --fit--> a curve per tag, one for all --> calibration.json
logits of a new image --Calibration.probabilities--> how often such a logit was right

Platt: sigmoid(slope * logit + offset), two numbers a tag, from few labels. Isotonic: the rising steps that fit best,
any shape, for which many labels are needed. A tag with fewer than `min_labels` images either way gets the curve `*`
of all tags together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from infinity_mm.config import build, to_plain
from infinity_mm.errors import explain
from infinity_mm.record import canonical_json, digest

Method = Literal["platt", "isotonic"]
ALL = "*"
"""Name of the curve of all tags together."""
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Probability over logit: straight between points after a logistic function, or between points alone."""

    slope: float = 1.0
    """Platt: probability = sigmoid(slope * logit + offset)."""
    offset: float = 0.0
    at: tuple[float, ...] = ()
    """Isotonic: logits in rising order; if there are any, slope and offset do not count."""
    probability: tuple[float, ...] = ()
    """Isotonic: what they mean; straight lines between, level beyond the ends."""

    def __call__(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities."""
        if self.at:
            return np.interp(logits, self.at, self.probability)
        return sigmoid(self.slope * logits + self.offset)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The curves of one tagger with one vocabulary."""

    tagger: str
    """Fingerprint of the tagger that it was fitted for, without any calibration."""
    num_images: int
    """Labelled images it was fitted on."""
    measured: Mapping[str, float]
    """On a fifth of the images, with curves fitted on the others; see `measure`."""
    curves: Mapping[str, Curve]
    """Tag -> its curve; `*` for all others."""

    @classmethod
    def load(cls, path: str) -> Self:
        """Read what `save` wrote."""
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            curves = {tag: build(Curve, curve, where=path) for tag, curve in plain.pop("curves").items()}
            curves[ALL]  # what tags without a curve of their own are read by
            return cls(curves=curves, **plain)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise explain(
                what=f"no calibration can be read: {type(error).__name__}: {error}",
                where=f"tagger.calibration: {path}",
                fix="make one with `infinity-mm calibrate-tags LABELS --out FILE`",
            ) from error

    def save(self, path: Path) -> None:
        """Write it as JSON that a person can read."""
        plain = to_plain(self)
        plain["curves"] = {
            tag: {key: value for key, value in curve.items() if value != to_plain(Curve())[key]}
            for tag, curve in plain["curves"].items()
        }
        path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """Hash of all curves."""
        return digest("calibration", canonical_json(to_plain(self.curves)))

    def probabilities(self, tags: Sequence[str], logits: NDArray[Any]) -> NDArray[np.float64]:
        """Rows of pictures, columns of tags."""
        curves = [self.curves.get(tag, self.curves[ALL]) for tag in tags]
        if not any(curve.at for curve in curves):
            slopes, offsets = (np.array([getattr(c, key) for c in curves]) for key in ("slope", "offset"))
            return sigmoid(slopes * logits + offsets)
        return np.stack([curve(logits[:, place]) for place, curve in enumerate(curves)], axis=1)


def fit(
    tags: Sequence[str],
    logits: NDArray[Any],
    right: NDArray[np.bool_],
    known: NDArray[np.bool_],
    *,
    tagger: str,
    method: Method = "platt",
    min_labels: int = 10,
) -> Calibration:
    """Curves for (images, tags) logits; `right` says which tags are true, `known` where that is known at all."""
    if not 0 < (right & known).sum() < known.sum():
        raise explain(
            what="the labels hold no tag that is there, or none that is not",
            where="calibration of tags",
            fix="label images with tags of the tagger's vocabulary, some images with a tag and some without",
        )
    rows = np.arange(len(logits))
    held_out = rows % 5 == 4
    parts = [
        _curves(tags, logits[part], right[part], known[part], method, min_labels)
        for part in (~held_out, rows >= 0)
    ]
    found = Calibration(tagger=tagger, num_images=len(logits), measured={}, curves=parts[0])
    seen = known[held_out]
    before = measure(sigmoid(logits[held_out])[seen], right[held_out][seen])
    after = measure(found.probabilities(tags, logits[held_out])[seen], right[held_out][seen])
    measured = {f"{key}_before": v for key, v in before.items()} | {
        f"{key}_after": v for key, v in after.items()
    }
    return Calibration(tagger=tagger, num_images=len(logits), measured=measured, curves=parts[1])


def measure(probabilities: NDArray[Any], right: NDArray[np.bool_]) -> dict[str, float]:
    """Brier score, and the mean distance of stated probability from observed share in ten equal bins."""
    if not right.size:
        return {}
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    distance = 0.0
    for bin_ in np.unique(bins):
        inside = bins == bin_
        distance += abs(probabilities[inside].mean() - right[inside].mean()) * inside.mean()
    brier = float(((probabilities - right) ** 2).mean())
    return {"brier": round(brier, 6), "calibration_error": round(float(distance), 6)}


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Without overflow at either end."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def logit(probability: float) -> float:
    """The inverse; what is certain is held to one in a million, so that it stays a number."""
    held = min(max(probability, 1e-6), 1 - 1e-6)
    return float(np.log(held / (1 - held)))


def _curves(
    tags: Sequence[str],
    logits: NDArray[Any],
    right: NDArray[np.bool_],
    known: NDArray[np.bool_],
    method: Method,
    min_labels: int,
) -> dict[str, Curve]:
    curve = _platt if method == "platt" else _isotonic
    curves = {ALL: curve(logits[known], right[known])}
    for place, tag in enumerate(tags):
        seen = known[:, place]
        num_right = int((right[:, place] & seen).sum())
        if min(num_right, int(seen.sum()) - num_right) >= min_labels:
            curves[tag] = curve(logits[seen, place], right[seen, place])
    return curves


def _platt(logits: NDArray[Any], right: NDArray[np.bool_]) -> Curve:
    """Newton's method on the likelihood. Platt's targets, a little inside 0 and 1, keep separable classes finite."""
    logits = np.asarray(logits, dtype=np.float64)
    num_right, num_wrong = right.sum(), (~right).sum()
    target = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    center, scale = logits.mean(), logits.std() or 1.0
    x = np.stack([(logits - center) / scale, np.ones_like(logits)], axis=1)
    weights = np.array([0.0, np.log((num_right + 1) / (num_wrong + 1))])
    loss = _loss(x, weights, target)
    for _ in range(100):
        p = sigmoid(x @ weights)
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (p - target))
        while (new := _loss(x, weights - step, target)) > loss and np.abs(step).max() > 1e-9:
            step /= 2  # far from the solution a whole step can overshoot
        weights, loss = weights - step, new
        if np.abs(step).max() < 1e-9:
            break
    slope = weights[0] / scale
    return Curve(slope=round(float(slope), 6), offset=round(float(weights[1] - slope * center), 6))


def _loss(x: NDArray[Any], weights: NDArray[Any], target: NDArray[Any]) -> float:
    z = x @ weights
    return float((np.logaddexp(0, z) - target * z).sum())


def _isotonic(logits: NDArray[Any], right: NDArray[np.bool_]) -> Curve:
    """Pool adjacent violators; each pool becomes one point, at its mean logit."""
    order = np.argsort(logits, kind="stable")
    at, first, counts = np.unique(
        np.asarray(logits, dtype=np.float64)[order], return_index=True, return_counts=True
    )
    hits = np.add.reduceat(right[order].astype(np.float64), first)
    pools: list[list[float]] = []  # number, hits, sum of logits
    for number, hit, place in zip(counts.tolist(), hits.tolist(), at.tolist()):
        pools.append([number, hit, number * place])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last)]
    points = [(round(total / number, 6), round(hit / number, 6)) for number, hit, total in pools]
    return Curve(at=tuple(p[0] for p in points), probability=tuple(p[1] for p in points))
