"""A key-value cache with room to grow in place.

transformers' own growing cache copies all of it for every token, which at a few million parameters costs more than
the model does.

Legend: C cached tensors, two per layer; B rows, H key-value heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

Prefix = Float[Tensor, "C H _ D"]
"""Keys and values of the positions of one row, layer by layer: keys of layer 0, values of layer 0, keys of 1, ..."""


@final
class _Layer(DynamicLayer):
    """One layer's part of the common buffer."""

    def __init__(self, cache: RoomyCache, index: int) -> None:
        super().__init__()
        self._cache, self._index = cache, index
        self._length = cache.length
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the old ones and return all of them."""
        start, end = self._length, self._length + key_states.shape[-2]
        keys, values = self._cache.buffer[2 * self._index], self._cache.buffer[2 * self._index + 1]
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self._length = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self) -> int:
        """Positions held."""
        return self._length


@final
class RoomyCache(Cache):
    """Rows that start with given prefixes, left-aligned, and have `room` more positions."""

    def __init__(self, prefixes: Sequence[Prefix], room: int) -> None:
        num_tensors, heads, _, width = prefixes[0].shape
        self.length = max(prefix.shape[2] for prefix in prefixes)
        """Positions of the longest prefix; later positions follow for all rows, so shorter rows have a gap."""
        self.buffer = prefixes[0].new_zeros(num_tensors, len(prefixes), heads, self.length + room, width)
        """(C, B, H, T, D)"""
        for row, prefix in enumerate(prefixes):
            self.buffer[:, row, :, : prefix.shape[2]] = prefix
        super().__init__(layers=[_Layer(self, index) for index in range(num_tensors // 2)])

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        self.buffer = self.buffer[:, torch.tensor(rows, device=self.buffer.device)]


def take_prefixes(cache: Cache, lengths: Sequence[int]) -> list[Prefix]:
    """The first positions of every row of transformers' own cache, copied out."""
    layers = cast(list[DynamicLayer], cache.layers)
    stacked = torch.stack([cast(Tensor, part) for layer in layers for part in (layer.keys, layer.values)])
    return [stacked[:, row, :, :length].clone() for row, length in enumerate(lengths)]
