"""Attention for a CPU that reads each key-value head once, however many query heads share it.

transformers copies the keys and values for every query head before each call with a mask. On a CPU, in a decode loop,
that copy costs several times what the attention itself does (1.3 against 6 ms and more for 64 rows of 150 positions).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

GROUPED_SDPA = "grouped_sdpa"
"""Name for `model.set_attn_implementation`."""


def register() -> None:
    """Make the name known to transformers; safe to call twice."""
    AttentionInterface.register(GROUPED_SDPA, _grouped_sdpa)
    AttentionMaskInterface.register(GROUPED_SDPA, sdpa_mask)


def _grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature transformers calls; heads are the second dimension."""
    out = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=attention_mask is None and query.shape[2] > 1,
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), None
