"""An attention backend for training on a CPU: float32 under autocast, and packed rows sample by sample.

`model.set_attn_implementation("sdpa_float32")`. Measured with torch 2.13 on a Xeon with AMX: the backward pass of
scaled-dot-product attention on 64 positions with heads 32 wide takes 28 ms in bfloat16 and 5 ms in float32, so a
nano model trains 1.2 times as fast with this backend under bfloat16 autocast. And a row of 1,024 positions that holds
eight samples takes 29 ms (forward and backward) as one product with a mask, 6 ms as eight products.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_FLOAT32 = "sdpa_float32"
"""Name of the backend."""

_SMALLEST_BLOCK = 48
"""Positions; smaller blocks are computed together with the next, because every call has its own cost."""


def sdpa_float32_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Transformers' SDPA on float32 copies; the result is in the dtype of `query`.

    Where a boolean mask divides a row into blocks that attend to nothing outside, each block is computed alone.
    """
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    rows = [] if attention_mask is None else _blocks(attention_mask)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.float(), key.float(), value.float()
        if attention_mask is None or max(map(len, rows), default=1) == 1:
            output, _ = sdpa_attention_forward(module, q, k, v, attention_mask, **kwargs)
            return output.to(query.dtype), None
        outputs: list[Tensor] = []
        for r, blocks in enumerate(rows):
            parts: list[Tensor] = []
            for start, stop in blocks:
                at = (slice(r, r + 1), slice(None), slice(start, stop))
                mask = attention_mask[at][..., start:stop]
                parts.append(sdpa_attention_forward(module, q[at], k[at], v[at], mask, **kwargs)[0])
            outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs).to(query.dtype), None


def _blocks(mask: Tensor) -> list[list[tuple[int, int]]]:
    """(start, stop) of the parts of each row that attend only to themselves; none for a mask of another form."""
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
        return []
    mask_BTT, T = mask[:, 0].byte(), mask.shape[-1]
    first_BT, last_BT = mask_BTT.argmax(-1), T - 1 - mask_BTT.flip(-1).argmax(-1)
    # A part begins where nothing from here on looks back, and nothing before looks this far.
    earliest_BT = first_BT.flip(-1).cummin(-1).values.flip(-1)
    latest_BT = last_BT.cummax(-1).values
    position_T = torch.arange(T, device=mask.device)
    begins_BT = earliest_BT >= position_T
    begins_BT[:, 1:] &= latest_BT[:, :-1] < position_T[1:]
    rows = []
    for begins_T in begins_BT:
        starts = [0]
        for start in begins_T.nonzero().flatten().tolist():
            if start - starts[-1] >= _SMALLEST_BLOCK:
                starts.append(start)
        rows.append(list(pairwise([*starts, T])))
    return rows


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32_forward)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
