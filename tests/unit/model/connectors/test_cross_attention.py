"""Positions of the resamplers."""

import math

import pytest
import torch

from infinity_mm.errors import UserError
from infinity_mm.model.connectors.cross_attention import positions
from infinity_mm.model.connectors.perceiver import Perceiver
from infinity_mm.model.connectors.shape import ConnectorShape


def test_a_position_is_its_row_then_its_column() -> None:
    (first, *_, last) = positions(2, 3, 8)
    assert first.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    row = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    column = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    assert last.tolist() == pytest.approx([*row, *column])


def test_any_grid_has_distinct_positions() -> None:
    assert positions(5, 200, 16).unique(dim=0).shape == (1000, 16)


def test_positions_let_a_query_tell_where_a_patch_is() -> None:
    torch.manual_seed(0)
    perceiver = Perceiver(vision_dim=8, text_dim=8, hidden_dim=8, shape=ConnectorShape(merge=1, queries=2))
    for weight in perceiver.parameters():
        torch.nn.init.normal_(weight)
    patches, shape = torch.randn(4, 8), torch.tensor([[0, 2, 2]])
    with torch.no_grad():
        moved = perceiver(patches.flip(0), shape) - perceiver(patches, shape)
    assert moved.abs().max() > 1e-3


def test_an_odd_width_has_no_positions() -> None:
    with pytest.raises(UserError, match="attention width of 30"):
        Perceiver(vision_dim=8, text_dim=8, hidden_dim=30, shape=ConnectorShape(merge=1, queries=2))
