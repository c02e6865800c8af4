"""Pixel unshuffle: which patches meet in one token."""

import pytest

from infinity_mm.errors import UserError
from infinity_mm.model.connectors.pixel_unshuffle_mlp import neighbour_order


def test_the_patches_of_a_square_stand_together() -> None:
    # A view of 2x4 patches numbered 0 to 7, then one of 2x2 numbered 8 to 11.
    order = neighbour_order([[0, 2, 4], [0, 2, 2]], merge=2)
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]


def test_sixteen_patches_become_one_token() -> None:
    assert neighbour_order([[0, 4, 8]], merge=4)[:8].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_merge_of_one_keeps_reading_order() -> None:
    assert neighbour_order([[0, 2, 3]], merge=1).tolist() == [0, 1, 2, 3, 4, 5]


def test_an_odd_side_cannot_be_merged() -> None:
    with pytest.raises(UserError, match="3x4 patches cannot be merged 2x2"):
        neighbour_order([[0, 3, 4]], merge=2)
