"""The attention backend of CPU training: the numbers of SDPA, block by block."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infinity_mm.model import attention
from infinity_mm.model.attention import SDPA_FLOAT32, packed_attention, sdpa_float32_forward


class Layer(nn.Module):
    """What SDPA reads of an attention layer."""

    num_key_value_groups = 2
    is_causal = True


def packed(rows: list[list[int]], padding_to: int) -> dict[str, Any]:
    """What the backend gets for rows of samples of the given lengths."""
    ids = [[i for i, length in enumerate(row, 1) for _ in range(length)] for row in rows]
    ids = torch.tensor([row + [0] * (padding_to - len(row)) for row in ids])
    return packed_attention(SDPA_FLOAT32, ids, torch.zeros_like(ids), torch.float32)


def spans(arguments: dict[str, Any]) -> list[list[tuple[int, int, bool]]]:
    return [[(b.start, b.stop, b.causal) for b in row] for row in arguments["packed_blocks"]]


def one_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    repeated = [x.repeat_interleave(2, dim=1) for x in (key, value)]
    return nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask).transpose(1, 2)


@pytest.fixture(autouse=True)
def _every_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SMALLEST_BLOCK", 1)


def test_samples_are_blocks_without_a_mask_and_padding_is_one_with() -> None:
    assert spans(packed([[3, 2]], 7)) == [[(0, 3, True), (3, 5, True), (5, 7, False)]]


def test_small_blocks_are_computed_together_under_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SMALLEST_BLOCK", 4)
    assert spans(packed([[3, 2, 6, 1]], 13)) == [
        [(0, 5, False), (5, 11, True), (11, 12, True), (12, 13, False)]
    ]


def test_a_sample_with_branches_keeps_its_mask() -> None:
    ids, branches = torch.tensor([[1, 1, 1, 2, 2]]), torch.tensor([[0, 1, 2, 0, 0]])
    arguments = packed_attention(SDPA_FLOAT32, ids, branches, torch.float32)
    assert spans(arguments) == [[(0, 3, False), (3, 5, True)]]


@settings(max_examples=25)
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_one_product(rows: list[list[int]], seed: int) -> None:
    longest = max(map(sum, rows))
    arguments = packed(rows, longest)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(rows), heads, longest, 8) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    query, key, value = inputs
    ours, _ = sdpa_float32_forward(Layer(), query, key, value, **arguments)
    reference = one_product(query, key, value, arguments["attention_mask"])
    torch.testing.assert_close(ours, reference)
    weights = torch.randn(ours.shape, generator=generator)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((reference * weights).sum(), inputs),
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_block_is_untouched_by_its_neighbour() -> None:
    arguments = packed([[3, 4]], 7)
    query, key, value = (torch.randn(1, heads, 7, 8) for heads in (4, 2, 2))
    before, _ = sdpa_float32_forward(Layer(), query, key, value, **arguments)
    for changed in (query, key, value):
        changed[:, :, :3] += 1
    after, _ = sdpa_float32_forward(Layer(), query, key, value, **arguments)
    assert torch.equal(before[:, 3:], after[:, 3:])
    assert not torch.equal(before[:, :3], after[:, :3])


def test_the_result_has_the_dtype_of_the_query() -> None:
    query, key, value = (torch.randn(1, heads, 7, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    output, _ = sdpa_float32_forward(Layer(), query, key, value, **packed([[3, 4]], 7))
    assert output.dtype == torch.bfloat16
