"""Spread questions over instruction types, so that rare types are not starved and common ones do not take all.

image -> {type: score}, questions per image, share per type --assign_types--> image -> types
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def assign_types(
    scores: Mapping[str, Mapping[str, float]], *, per_image: int, shares: Mapping[str, float]
) -> dict[str, list[str]]:
    """For each image up to `per_image` different types out of those it has a positive score for.

    Types fill up like connected vessels: the one that has the least of its share (of equals, the one that suits the
    fewest images) takes, of the images with a question to spare, the one that suits it best, and so on until no
    image has both a question to spare and a type to spend it on. The result depends on ids and scores alone, not on
    the order of the arguments. A type with a share of 0 gets nothing.
    """
    suited: dict[str, list[tuple[float, str]]] = {type_: [] for type_, share in shares.items() if share > 0}
    for image, row in scores.items():
        for type_, score in row.items():
            if type_ in suited and score > 0:
                suited[type_].append((-score, image))
    waiting = {type_: iter(sorted(images)) for type_, images in suited.items()}
    # (share filled, number of suited images, type): the smallest is next to take.
    heap = [(0.0, len(images), type_) for type_, images in suited.items()]
    heapq.heapify(heap)
    taken: dict[str, list[str]] = {image: [] for image in scores}
    while heap:
        filled, num_suited, type_ = heap[0]
        image = next((image for _, image in waiting[type_] if len(taken[image]) < per_image), None)
        if image is None:
            heapq.heappop(heap)
            continue
        taken[image].append(type_)
        heapq.heapreplace(heap, (filled + 1 / shares[type_], num_suited, type_))
    return taken
