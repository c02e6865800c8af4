"""Which instruction types suit an image: TF-IDF between image tags and types, fitted on seed data.

    seeds (tags of an image, type of a question about it) --fit--> weight of each tag for each type
    tags of a new image with scores --score--> types, best first

Each instruction type is a document and its seed images' tags are the terms. A tag weighs much for a type when it is
common in the type's images (tf) and belongs to few types (idf). Of the variants we use

    tf(tag, type) = count(tag, type) / sum of the type's counts
    idf(tag)      = log((1 + number of types) / (1 + number of types with the tag)) + 1
    weight        = tf * idf, each type's weights scaled to unit length
    score(type)   = sum of score(tag) * weight(tag, type) / sum of score(tag), over the image's tags

The + 1 keeps a tag that every type has from vanishing; the unit length keeps a type with many different tags from
losing to one with few; the mean over tags makes scores of images with few and many tags comparable.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infinity_mm.record import Tag


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """One known pair: an image's tags and the type of a question that someone asked about it."""

    tags: tuple[str, ...]
    type: str
    question: str | None = None
    """The question itself; serves as an example."""


@dataclass(frozen=True, kw_only=True)
class TypeMapping:
    """A fitted mapping."""

    weights: Mapping[str, Mapping[str, float]]
    """Type -> tag -> weight."""

    def score(self, tags: Sequence[Tag]) -> dict[str, float]:
        """Type -> score for all types with any, best first; equal scores in order of name."""
        total = sum(tag.score for tag in tags)
        if total <= 0:
            return {}
        scores = {
            type_: sum(tag.score * row.get(tag.name, 0.0) for tag in tags) / total
            for type_, row in self.weights.items()
        }
        return dict(
            sorted(((t, s) for t, s in scores.items() if s > 0), key=lambda item: (-item[1], item[0]))
        )

    def to_plain(self, num_best: int = 10) -> dict[str, Any]:
        """A form for people and JSON: all weights, the best tags of each type, the best types of each tag."""
        by_tag: dict[str, dict[str, float]] = defaultdict(dict)
        for type_, row in self.weights.items():
            for tag, weight in row.items():
                by_tag[tag][type_] = weight
        return {
            "variant": "tf = count / total; idf = ln((1 + n) / (1 + df)) + 1; unit length; score-weighted mean",
            "best_tags_of_type": {type_: _best(row, num_best) for type_, row in sorted(self.weights.items())},
            "best_types_of_tag": {tag: _best(row, num_best) for tag, row in sorted(by_tag.items())},
            "weights": {
                type_: {tag: round(weight, 6) for tag, weight in sorted(row.items())}
                for type_, row in sorted(self.weights.items())
            },
        }


def fit_mapping(seeds: Iterable[Seed], types: Iterable[str]) -> TypeMapping:
    """Fit the mapping; types without a seed get no weights, seeds of other types are left out."""
    counts: dict[str, Counter[str]] = {type_: Counter() for type_ in types}
    for seed in seeds:
        if seed.type in counts:
            counts[seed.type].update(set(seed.tags))
    spread = Counter(tag for row in counts.values() for tag in row)
    weights: dict[str, dict[str, float]] = {}
    for type_, row in counts.items():
        total = sum(row.values())
        raw = {
            tag: count / total * (math.log((1 + len(counts)) / (1 + spread[tag])) + 1)
            for tag, count in sorted(row.items())
        }
        length = math.sqrt(sum(weight**2 for weight in raw.values()))
        weights[type_] = {tag: weight / length for tag, weight in raw.items()}
    return TypeMapping(weights=weights)


def _best(row: Mapping[str, float], n: int) -> dict[str, float]:
    ranked = sorted(row.items(), key=lambda item: (-item[1], item[0]))[:n]
    return {name: round(weight, 4) for name, weight in ranked}
