"""Positions with three axes (time, height, width), for models with multimodal rotary embeddings.

    position_ids (R, T), image tokens, patch grids --mrope--> (3, R, T)

Legend: R rows, T positions of a row, I image tokens of the batch, K images.

An image of h x w tokens starts where the text before it ended, takes that position on the time axis, counts rows and
columns on the two others, and the text after it goes on max(h, w) further (Qwen2-VL, arXiv 2409.12191, section 2.1).
So packed samples and branches, whose plain positions restart, only have to be moved by what their own images saved.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def mrope(
    position_ids: Int[Tensor, "R T"],
    is_image_RT: Bool[Tensor, "R T"],
    view_shapes: Int[Tensor, "K 3"] | None,
    merge: int,
) -> Int[Tensor, "3 R T"]:
    """`view_shapes` holds (image, rows, columns) in patches, images in reading order; `merge` patches a side are
    one token. `position_ids` is 0 on the first position of a sample and nowhere else in it."""
    if view_shapes is None:
        return position_ids.expand(3, *position_ids.shape)
    plain = position_ids.flatten()
    rows_K, columns_K = view_shapes[:, 1] // merge, view_shapes[:, 2] // merge
    num_K = rows_K * columns_K
    last_K = num_K.cumsum(0) - 1
    at_I = is_image_RT.flatten().nonzero().squeeze(1)
    saved = torch.zeros_like(plain)
    saved[at_I[last_K]] = torch.maximum(rows_K, columns_K) - num_K
    before = saved.cumsum(0) - saved  # what all images before a position saved, other samples' included
    index = torch.arange(len(plain), device=plain.device)
    start = torch.where(plain == 0, index, 0).cummax(0).values
    positions = (plain + before - before[start]).expand(3, -1).clone()

    image_I = torch.repeat_interleave(torch.arange(len(num_K), device=plain.device), num_K)
    first_I = at_I[last_K - num_K + 1][image_I]
    within_I = torch.arange(len(at_I), device=plain.device) - (last_K - num_K + 1)[image_I]
    offsets = torch.stack(
        [torch.zeros_like(within_I), within_I // columns_K[image_I], within_I % columns_K[image_I]]
    )
    positions[:, at_I] = positions[:, first_I] + offsets
    return positions.view(3, *position_ids.shape)
