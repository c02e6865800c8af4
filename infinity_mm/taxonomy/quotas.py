"""Spread questions over instruction types, so that rare types are not starved and common ones do not take all.

image -> {type: score}, questions per image, quota per type --assign--> image -> types
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def assign_types(
    scores: Mapping[str, Mapping[str, float]], *, per_image: int, shares: Mapping[str, float]
) -> dict[str, list[str]]:
    """For each image up to `per_image` different types, each with a positive score.

    A type's quota is its share of all questions. First each type, the one with the fewest suitable images first,
    takes the images that suit it best until its quota is met. Then every image with questions to spare takes, of
    the types that suit it, the one furthest below its quota. The result depends on ids and scores alone, not on
    the order of the arguments.
    """
    suitable: dict[str, list[tuple[float, str]]] = {type_: [] for type_ in shares}
    for image, row in scores.items():
        for type_, score in row.items():
            if type_ in suitable and score > 0:
                suitable[type_].append((-score, image))
    total = per_image * sum(1 for row in scores.values() if row)
    weight = sum(shares[type_] for type_, images in suitable.items() if images)
    quotas = {type_: shares[type_] / weight * total if weight else 0.0 for type_ in shares}

    taken: dict[str, list[str]] = {image: [] for image in scores}
    filled: Counter[str] = Counter()
    for type_ in sorted(suitable, key=lambda type_: (len(suitable[type_]), type_)):
        for _, image in sorted(suitable[type_]):
            if filled[type_] + 1 > quotas[type_]:
                break
            if len(taken[image]) < per_image:
                taken[image].append(type_)
                filled[type_] += 1
    for image in sorted(scores):
        row = scores[image]
        while len(taken[image]) < per_image:
            left = [t for t in row if row[t] > 0 and quotas.get(t, 0) > 0 and t not in taken[image]]
            if not left:
                break
            best = min(left, key=lambda t: (filled[t] / quotas[t], -row[t], t))
            taken[image].append(best)
            filled[best] += 1
    return taken
