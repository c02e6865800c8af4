"""Cutting into views, patches, and the contract on pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from infinity_mm.errors import UserError
from infinity_mm.vision.pixels import cut_views, normalise, pixels_of, resize, to_patches
from infinity_mm.vision.slicing import AspectGuard, SliceConfig, plan_slices

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def smooth(width: int, height: int) -> Image.Image:
    """A picture whose neighbouring pixels are alike, as in a photograph."""
    return noise(width // 8, height // 8).resize((width, height), Image.Resampling.BICUBIC)


def colour(view: torch.Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple(view[y, x, :3].tolist())


def test_slices_come_from_the_whole_picture_row_by_row() -> None:
    picture = Image.new("RGB", (128, 128))
    corners = [RED, GREEN, BLUE, WHITE]
    for index, paint in enumerate(corners):
        left, top = 64 * (index % 2), 64 * (index // 2)
        picture.paste(paint, (left, top, left + 64, top + 64))
    plan = plan_slices(128, 128, SliceConfig(scale_px=64, max_slices=4, patch_px=8))
    views = cut_views(picture, plan)
    assert [(view.shape[1], view.shape[0]) for view in views] == [view.size for view in plan.views]
    assert [colour(view, 32, 32) for view in views[1:]] == corners


def test_padded_canvas_is_white_below_the_picture() -> None:
    config = SliceConfig(
        scale_px=64, max_slices=0, patch_px=8, aspect_guard=AspectGuard(max_aspect=1.0, action="pad")
    )
    (view,) = cut_views(Image.new("RGB", (64, 32), RED), plan_slices(64, 32, config))
    assert colour(view, 32, 8) == RED
    assert colour(view, 32, 56) == WHITE


def test_a_plan_for_another_size_is_refused() -> None:
    plan = plan_slices(128, 128, SliceConfig(scale_px=64, max_slices=4, patch_px=8))
    for size in [(128, 130), (127, 127), (130, 128)]:
        with pytest.raises(UserError, match="plan is for 128x128"):
            cut_views(Image.new("RGB", size), plan)


@settings(max_examples=50)
@given(
    old=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    new=st.tuples(st.integers(2, 60), st.integers(2, 60)),  # torch 2.13 fails on planes resized to one pixel
    seed=st.integers(0, 99),
)
def test_a_resize_is_bit_for_bit_that_of_torch(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    picture = noise(*old, seed)
    ours = resize(pixels_of(picture), new)[..., :3]
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].contiguous()
    torchs = functional.interpolate(planes, size=new[::-1], mode="bicubic", antialias=True)
    assert torch.equal(ours, torchs[0].permute(1, 2, 0))


@pytest.mark.parametrize("size", [(320, 240), (200, 160), (1000, 700)])
def test_a_resize_differs_from_pillows_by_two_levels_at_most(size: tuple[int, int]) -> None:
    picture = smooth(640, 448)
    ours = resize(pixels_of(picture), size)[..., :3].int()
    pillows = torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BICUBIC))).int()
    difference = (ours - pillows).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.02


def test_the_pixels_of_a_picture_are_not_copied_and_outlive_it() -> None:
    picture = noise(30, 20)
    expected = torch.from_numpy(np.array(picture))
    pixels = pixels_of(picture)
    assert pixels.shape == (20, 30, 4)
    assert pixels.data_ptr() == pixels_of(picture).data_ptr()
    del picture
    assert torch.equal(pixels[..., :3], expected)


def test_a_picture_that_pillow_keeps_in_pieces_has_the_same_pixels() -> None:
    picture = Image.new("RGB", (2100, 2100), RED)
    picture.putpixel((2099, 2098), GREEN)
    pixels = pixels_of(picture)
    assert pixels.shape == (2100, 2100, 3)
    assert colour(pixels, 2099, 2098) == GREEN
    assert colour(pixels, 0, 0) == RED


def test_patches_are_row_major_and_channel_first() -> None:
    view = torch.arange(4 * 6 * 3, dtype=torch.uint8).view(4, 6, 3)
    patches = to_patches([view, view + 1], 2)
    assert patches.shape == (12, 12)
    # Second patch of the first row: pixels (row 0..1, column 2..3), red first.
    assert patches[1].tolist() == [6, 9, 24, 27, 7, 10, 25, 28, 8, 11, 26, 29]
    assert torch.equal(patches[6:], patches[:6] + 1)


def test_the_filler_byte_of_a_pixel_is_in_no_patch() -> None:
    (view,) = cut_views(
        Image.new("RGB", (16, 16), RED),
        plan_slices(16, 16, SliceConfig(scale_px=16, max_slices=0, patch_px=8)),
    )
    assert to_patches([view], 8).sum(dim=1).tolist() == [64 * 255] * 4


def test_values_are_normalised_by_channel() -> None:
    patches = torch.tensor([[0] * 4 + [128] * 4 + [255] * 4], dtype=torch.uint8)
    values = normalise(patches, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25))
    assert values.dtype == torch.float32
    assert values[0, [0, 4, 8]].tolist() == pytest.approx([-1.0, 2 * 128 / 255 - 1, 2.0], abs=1e-6)


def test_a_view_that_does_not_divide_into_patches_is_refused() -> None:
    with pytest.raises(UserError, match="does not divide"):
        to_patches([torch.zeros(8, 10, 3, dtype=torch.uint8)], 8)
