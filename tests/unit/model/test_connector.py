"""Pixel unshuffle: which patches meet in one token."""

import pytest
import torch

from infinity_mm.errors import UserError
from infinity_mm.model.connector import PixelUnshuffleMLP, neighbour_order


def test_the_patches_of_a_square_stand_together() -> None:
    # A view of 2x4 patches numbered 0 to 7, then one of 2x2 numbered 8 to 11.
    order = neighbour_order([[0, 2, 4], [0, 2, 2]], merge=2)
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]


def test_a_merge_of_one_keeps_reading_order() -> None:
    assert neighbour_order([[0, 2, 3]], merge=1).tolist() == [0, 1, 2, 3, 4, 5]


def test_one_token_per_square() -> None:
    connector = PixelUnshuffleMLP(vision_dim=8, text_dim=6, merge=2, hidden_dim=5)
    assert connector(torch.zeros(12, 8), torch.tensor([[0, 2, 4], [1, 2, 2]])).shape == (3, 6)


def test_an_odd_side_cannot_be_merged() -> None:
    with pytest.raises(UserError, match="3x4 patches cannot be merged 2x2"):
        neighbour_order([[0, 3, 4]], merge=2)
