"""Spread questions over instruction types, so that rare types are not starved and common ones do not take all.

images, {type: score} --Candidates.add--> columns per type, 8 bytes a pair --assign--> types of each image
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import final

import numpy as np
from numpy.typing import NDArray

NONE = 0xFFFF
"""Stands in `assign`'s rows where an image got fewer types."""
_CHUNK = 1 << 14


@final
class _Column:
    """The images that one type suits, with scores. Full blocks are set aside: growing one array of each type, among
    those of all others, leaves holes in memory that add up to as much again."""

    def __init__(self) -> None:
        self.images, self.scores = array("i"), array("f")
        self._blocks: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []

    def seal(self, least: int = _CHUNK) -> None:
        """Set the open block aside if it has so many images."""
        if len(self.images) >= least:
            self._blocks.append((np.array(self.images, np.int32), np.array(self.scores, np.float32)))
            self.images, self.scores = array("i"), array("f")

    def best_first(self, rank: NDArray[np.int32]) -> Iterator[int]:
        """The images by score, equal ones by rank; sorted within the blocks, where there is room for them."""
        self.seal(0)
        blocks = [images for images, _ in self._blocks]
        images, scores = (np.concatenate(parts) for parts in zip(*self._blocks, strict=True))
        self._blocks.clear()
        ordered = images[np.lexsort((rank[images], -scores))]
        for start, block in zip(accumulate(map(len, blocks), initial=0), blocks):
            block[:] = ordered[start : start + len(block)]
        return (image for block in blocks for image in block.tolist())

    def __len__(self) -> int:
        return len(self.images) + sum(len(images) for images, _ in self._blocks)


@final
class Candidates:
    """Which types suit which images, for tens of millions of images: no object is kept for an image or a pair."""

    def __init__(self, types: Sequence[str]) -> None:
        """`types`: what may be asked at all; others are passed over."""
        assert len(types) < NONE, "types are numbered in 16 bits"
        self.types = tuple(types)
        self._columns = {type_: _Column() for type_ in types}
        self._ids: list[NDArray[np.bytes_]] = []
        self._num_images = 0

    def add(self, images: Mapping[str, Mapping[str, float]]) -> None:
        """Some more images: id -> type -> score. An image comes once; those of a unit are best added together."""
        for row, scores in enumerate(images.values(), start=self._num_images):
            for type_, score in scores.items():
                column = self._columns.get(type_)
                if column is not None and score > 0:
                    column.images.append(row)
                    column.scores.append(score)
        for column in self._columns.values():
            column.seal()
        if images:
            self._ids.append(np.array([id_.encode() for id_ in images]))
        self._num_images += len(images)

    def assign(self, *, per_image: int, shares: Mapping[str, float]) -> NDArray[np.uint16]:
        """For each image, in the order of adding, up to `per_image` different types out of those that suit it.

        Types fill up like connected vessels: the one that has the least of its share (of equals, the one that suits
        the fewest images) takes, of the images with a question to spare, the one that suits it best, and so on until
        no image has both a question to spare and a type to spend it on. The result depends on ids and scores alone,
        not on the order of adding. A type with a share of 0 gets nothing.

        Rows hold numbers of `types`, in the order in which they were assigned, then `NONE`. The candidates are used
        up: a column is freed as it is sorted.
        """
        rank = self._ranks()
        waiting: list[Iterator[int]] = []
        # (share filled, number of suited images, type): the smallest is next to take.
        heap: list[tuple[float, int, str, int]] = []
        for number, type_ in enumerate(self.types):
            column = self._columns.pop(type_)
            if len(column) and shares[type_] > 0:
                heap.append((0.0, len(column), type_, number))
            waiting.append(column.best_first(rank))
        heapq.heapify(heap)
        taken = np.full((self._num_images, per_image), NONE, dtype=np.uint16)
        num_taken = bytearray(self._num_images)
        while heap:
            filled, num_suited, type_, number = heap[0]
            image = next((image for image in waiting[number] if num_taken[image] < per_image), None)
            if image is None:
                heapq.heappop(heap)
                continue
            taken[image, num_taken[image]] = number
            num_taken[image] += 1
            heapq.heapreplace(heap, (filled + 1 / shares[type_], num_suited, type_, number))
        return taken

    def _ranks(self) -> NDArray[np.int32]:
        """The place of every image in the order of ids."""
        ids = np.concatenate(self._ids) if self._ids else np.array([], dtype="S1")
        self._ids.clear()
        rank = np.empty(len(ids), dtype=np.int32)
        rank[ids.argsort()] = np.arange(len(ids), dtype=np.int32)
        return rank
