"""Which instruction types suit an image: TF-IDF between image tags and types, fitted on seed data.

    seeds (tags of an image, type of a question about it) --fit_mapping--> weight of each tag for each type
    tags of a new image with scores --TypeMapping.score--> types, best first

Each instruction type is a document and its seed images' tags are the terms. A tag weighs much for a type when it is
common in the type's images (tf) and belongs to few types (idf):

    weight(tag, type) = tf * idf, each type's weights scaled to unit length unless that is switched off

With c = number of the type's seeds that have the tag, n = number of types, m = number of types with the tag:

    tf    share   c / sum of the type's counts      idf   smooth  ln((1 + n) / (1 + m)) + 1
          count   c                                       plain   ln(n / m)
          log     1 + ln(c)                               none    1

    score(type) over an image's tags, s = score of a tag, w = its weight for the type
          weighted_mean   sum(s * w) / sum(s)
          sum             sum(s * w)
          max             max(s * w)

The + 1 of `smooth` keeps a tag that every type has from vanishing, as it does with `plain`. Unit length keeps a type
with many different tags from losing to one with few; with it, `share` and `count` are the same. Within an image mean
and sum rank types alike; between images the mean does not favour those with many tags, which decides what image a
type takes first.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

from infinity_mm.config import build, to_plain
from infinity_mm.record import Tag


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """One known pair: an image's tags and the type of a question that someone asked about it."""

    tags: tuple[str, ...]
    type: str
    question: str | None = None
    """The question itself; serves as an example."""
    from_tree: bool = False
    """Whether nobody asked it: the typical tags that the tree names for the type."""


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """Which TF-IDF; the formulas are at the top of `taxonomy/mapping.py`."""

    tf: Literal["share", "count", "log"] = "share"
    idf: Literal["smooth", "plain", "none"] = "smooth"
    unit_length: bool = True
    """Whether each type's weights are scaled to length 1."""
    aggregation: Literal["weighted_mean", "sum", "max"] = "weighted_mean"
    """How the weights of an image's tags become the score of a type."""


@dataclass(frozen=True, kw_only=True)
class TypeMapping:
    """A fitted mapping."""

    weights: Mapping[str, Mapping[str, float]]
    """Type -> tag -> weight."""
    config: MappingConfig = field(default_factory=MappingConfig)
    """How it was fitted, and how it scores."""

    def score(self, tags: Sequence[Tag]) -> dict[str, float]:
        """Type -> score for all types with any, best first; equal scores in order of name."""
        found: dict[str, float] = {}
        total = 0.0
        # Added up one by one: `sum` rounds differently from Python 3.12 on.
        for tag in tags:
            total += tag.score
            for type_, weight in self._by_tag.get(tag.name, {}).items():
                part = tag.score * weight
                if self.config.aggregation == "max":
                    found[type_] = max(part, found.get(type_, 0.0))
                else:
                    found[type_] = found.get(type_, 0.0) + part
        if self.config.aggregation == "weighted_mean":
            found = {type_: score / total for type_, score in found.items() if score > 0}
        return dict(sorted(((t, s) for t, s in found.items() if s > 0), key=lambda item: (-item[1], item[0])))

    @cached_property
    def _by_tag(self) -> dict[str, dict[str, float]]:
        """An image has few tags and a tag few types: going by tag leaves most of the weights untouched."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for type_, row in self.weights.items():
            for tag, weight in row.items():
                found[tag][type_] = weight
        return dict(found)

    def to_json(self, about: Mapping[str, Any], num_best: int = 10) -> str:
        """For people and for `from_json`: the best tags of each type and types of each tag, then all weights."""
        plain = {
            **about,
            "mapping": to_plain(self.config),
            "best_tags_of_type": {type_: _best(row, num_best) for type_, row in sorted(self.weights.items())},
            "best_types_of_tag": {tag: _best(row, num_best) for tag, row in sorted(self._by_tag.items())},
            "weights": {
                type_: {tag: round(weight, 6) for tag, weight in sorted(row.items())}
                for type_, row in sorted(self.weights.items())
            },
        }
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote, with its rounded weights."""
        plain = json.loads(text)
        return cls(weights=plain["weights"], config=build(MappingConfig, plain["mapping"], where="mapping"))


def fit_mapping(
    seeds: Iterable[Seed], types: Iterable[str], config: MappingConfig | None = None
) -> TypeMapping:
    """Fit the mapping; types without a seed get no weights, seeds of other types are left out."""
    config = config or MappingConfig()
    counts: dict[str, Counter[str]] = {type_: Counter() for type_ in types}
    for seed in seeds:
        if seed.type in counts:
            counts[seed.type].update(set(seed.tags))
    spread = Counter(tag for row in counts.values() for tag in row)
    idf = {tag: _idf(config.idf, len(counts), number) for tag, number in spread.items()}
    weights: dict[str, dict[str, float]] = {}
    for type_, row in counts.items():
        raw = {tag: _tf(config.tf, count, row.total()) * idf[tag] for tag, count in sorted(row.items())}
        length = math.sqrt(math.fsum(weight**2 for weight in raw.values())) if config.unit_length else 1.0
        weights[type_] = {tag: weight / length for tag, weight in raw.items() if weight > 0}
    return TypeMapping(weights=weights, config=config)


def _tf(variant: str, count: int, total: int) -> float:
    match variant:
        case "share":
            return count / total
        case "count":
            return float(count)
        case _:
            return 1 + math.log(count)


def _idf(variant: str, num_types: int, with_tag: int) -> float:
    match variant:
        case "smooth":
            return math.log((1 + num_types) / (1 + with_tag)) + 1
        case "plain":
            return math.log(num_types / with_tag)
        case _:
            return 1.0


def _best(row: Mapping[str, float], n: int) -> dict[str, float]:
    ranked = sorted(row.items(), key=lambda item: (-item[1], item[0]))[:n]
    return {name: round(weight, 4) for name, weight in ranked}
