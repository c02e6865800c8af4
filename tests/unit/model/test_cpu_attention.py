"""The attention backend of CPU training: the numbers of SDPA, block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infinity_mm.model import attention
from infinity_mm.model.attention import block_mask, sdpa_float32_forward


class Layer(nn.Module):
    """What SDPA reads of an attention layer."""

    num_key_value_groups = 2
    is_causal = True


def row_mask(lengths: list[int], padding: int = 0) -> Tensor:
    ids = [i for i, length in enumerate(lengths, 1) for _ in range(length)] + [0] * padding
    return block_mask(torch.tensor([ids]), torch.zeros(1, len(ids), dtype=torch.long))


def one_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    repeated = [x.repeat_interleave(2, dim=1) for x in (key, value)]
    return nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask).transpose(1, 2)


@pytest.fixture(autouse=True)
def _every_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SMALLEST_BLOCK", 1)


def test_samples_and_padding_are_blocks() -> None:
    assert attention._blocks(row_mask([3, 2], padding=2)) == [[(0, 3), (3, 5), (5, 6), (6, 7)]]


def test_small_blocks_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SMALLEST_BLOCK", 4)
    assert attention._blocks(row_mask([3, 2, 6, 1])) == [[(0, 5), (5, 11), (11, 12)]]


def test_one_look_back_or_ahead_joins_blocks() -> None:
    mask = row_mask([2, 2])
    assert len(attention._blocks(mask)[0]) == 2
    for query, key in [(3, 0), (0, 3)]:
        joined = mask.clone()
        joined[0, 0, query, key] = True
        assert attention._blocks(joined) == [[(0, 4)]]


def test_masks_of_another_form_have_no_blocks() -> None:
    assert attention._blocks(torch.ones(1, 1, 1, 4, dtype=torch.bool)) == []
    assert attention._blocks(torch.zeros(1, 1, 4, 4)) == []


@settings(max_examples=25)
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_one_product(rows: list[list[int]], seed: int) -> None:
    longest = max(map(sum, rows))
    mask = torch.cat([row_mask(lengths, longest - sum(lengths)) for lengths in rows])
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(rows), heads, longest, 8) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    query, key, value = inputs
    ours, _ = sdpa_float32_forward(Layer(), query, key, value, mask)
    reference = one_product(query, key, value, mask)
    torch.testing.assert_close(ours, reference)
    weights = torch.randn(ours.shape, generator=generator)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((reference * weights).sum(), inputs),
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_block_is_untouched_by_its_neighbour() -> None:
    mask = row_mask([3, 4])
    query, key, value = (torch.randn(1, heads, 7, 8) for heads in (4, 2, 2))
    before, _ = sdpa_float32_forward(Layer(), query, key, value, mask)
    for changed in (query, key, value):
        changed[:, :, :3] += 1
    after, _ = sdpa_float32_forward(Layer(), query, key, value, mask)
    assert torch.equal(before[:, 3:], after[:, 3:])
    assert not torch.equal(before[:, :3], after[:, :3])


def test_the_result_has_the_dtype_of_the_query() -> None:
    query, key, value = (torch.randn(1, heads, 7, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    output, _ = sdpa_float32_forward(Layer(), query, key, value, row_mask([3, 4]))
    assert output.dtype == torch.bfloat16
