import pytest
import torch
from torch import nn

from infinity_mm.engines.attention import _grouped_sdpa


@pytest.mark.parametrize("masked", [True, False])
def test_grouped_attention_is_attention_with_repeated_heads(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (6, 3, 3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    out, _ = _grouped_sdpa(nn.Module(), query, key, value, mask[None, None] if masked else None, scaling=0.3)
    repeated = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
    reference = nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(out, reference.transpose(1, 2))
