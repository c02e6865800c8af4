"""Regions: which patches each query reads, and how much of each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infinity_mm.errors import UserError
from infinity_mm.model.connectors.region_resampler import RegionResampler, log_overlap
from infinity_mm.model.connectors.shape import ConnectorShape


def resampler(queries: int = 4) -> RegionResampler:
    torch.manual_seed(0)
    shape = ConnectorShape(merge=1, queries=queries)
    module = RegionResampler(vision_dim=8, text_dim=8, hidden_dim=8, shape=shape)
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module


def test_two_regions_of_three_patches_share_the_middle_one() -> None:
    assert log_overlap(2, 3).exp().tolist() == [[2, 1, 0], [0, 1, 2]]  # in halves of a patch


def test_three_regions_of_one_patch_all_read_it() -> None:
    assert log_overlap(3, 1).exp().tolist() == [[1], [1], [1]]


@given(num_regions=st.integers(1, 16), num_patches=st.integers(1, 64))
def test_regions_are_equal_and_cover_every_patch_once(num_regions: int, num_patches: int) -> None:
    shared = log_overlap(num_regions, num_patches).exp().round()
    assert shared.sum(1).tolist() == [num_patches] * num_regions
    assert shared.sum(0).tolist() == [num_regions] * num_patches


def test_a_query_reads_its_own_region_only() -> None:
    module, patches, shape = resampler(), torch.randn(16, 8), torch.tensor([[0, 4, 4]])
    changed = patches.clone()
    changed[[0, 1, 4, 5]] += torch.randn(4, 8)  # the region of the first of 2x2 queries
    with torch.no_grad():
        moved = (module(changed, shape) - module(patches, shape)).abs().amax(1)
    assert moved[0] > 1e-3
    assert moved[1:].tolist() == [0, 0, 0]


def test_with_equal_scores_a_query_returns_the_mean_over_its_region() -> None:
    module, patches = resampler(), torch.randn(9, 8)
    for layer in (module.query_proj, module.key_proj):
        nn.init.zeros_(layer.weight)
    with torch.no_grad():
        hidden = module.value_proj(module.key_norm(module.to_hidden(patches))).view(3, 3, 8)
        # Upper left of 2x2 regions on 3x3 patches: one whole patch, two halves, one quarter.
        mean = (hidden[0, 0] + 0.5 * (hidden[0, 1] + hidden[1, 0]) + 0.25 * hidden[1, 1]) / 2.25
        expected = module.to_text(module.out_norm(module.out_proj(mean)))
        got = module(patches, torch.tensor([[0, 3, 3]]))[0]
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_single_patch_is_enough_for_all_regions() -> None:
    with torch.no_grad():
        tokens = resampler(144)(torch.randn(1, 8), torch.tensor([[0, 1, 1]]))
    assert tokens.shape == (144, 8)
    assert tokens.isfinite().all()


def test_queries_must_form_a_square() -> None:
    with pytest.raises(UserError, match="10 queries do not form a square"):
        resampler(10)
