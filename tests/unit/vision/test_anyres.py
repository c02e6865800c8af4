"""LLaVA-OneVision's way of cutting images against its published counts and against transformers' own code."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from infinity_mm.errors import UserError
from infinity_mm.vision.anyres import AnyresConfig, AnyresPlan, plan_anyres, square_grids
from infinity_mm.vision.pixels import cut_views
from infinity_mm.vision.plans import plan_images
from infinity_mm.vision.slicing import SliceConfig, SlicePlan

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "uhd_slicing.json").read_text())["cases"]
RELEASED = AnyresConfig()
side_px = st.one_of(st.integers(1, 5000), st.integers(1, 6).map(lambda n: n * 384), st.integers(1, 40))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['width']}x{case['height']}")
def test_plan_equals_the_published_reference(case: dict[str, Any]) -> None:
    expected = case["llava_onevision_anyres_384_6x6"]
    plan = plan_anyres(case["width"], case["height"], RELEASED)
    assert plan.grid == tuple(expected["grid_cols_rows"])
    assert len(plan.views) == expected["views"]
    assert plan.num_tokens == expected["tokens_anyres_max_9"]


@pytest.mark.parametrize(
    ("size", "tokens"), [((1, 1), 1485), ((384, 384), 1485), ((2304, 2304), 7371), ((5000, 5000), 7371)]
)
def test_known_token_counts(size: tuple[int, int], tokens: int) -> None:
    assert plan_anyres(*size, RELEASED).num_tokens == tokens


def test_a_wide_image_keeps_its_aspect_and_loses_its_padding() -> None:
    plan = plan_anyres(1000, 400, RELEASED)
    assert plan.grid == (3, 2)
    assert plan.resized_size == (1152, 461)
    assert plan.unpadded == (81, 32)  # 81 * 400 / 1000 = 32.4 of 54 rows
    assert plan.shrunk == (81, 32)
    assert plan.num_tokens == 729 + 32 * 82
    assert plan.view_shapes == [(27, 27, 1000, 400)] * 7


def test_an_image_among_others_is_one_view_and_a_newline() -> None:
    plans = plan_images([(1000, 400), (50, 50)], RELEASED)
    assert [plan.num_tokens for plan in plans] == [730, 730]
    assert [len(plan.views) for plan in plans] == [1, 1]


def test_the_kind_of_configuration_decides_the_kind_of_plan() -> None:
    assert isinstance(plan_images([(100, 100)], RELEASED)[0], AnyresPlan)
    assert isinstance(plan_images([(100, 100)], SliceConfig(scale_px=56, max_slices=4))[0], SlicePlan)


def transformers_tokens(width: int, height: int, config: AnyresConfig) -> int:
    """The count of transformers' processor; without weights or pixels."""
    processor: Any = object.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens = config.tile_cells**2
    processor.vision_aspect_ratio = f"anyres_max_{config.max_tiles}"
    processor.image_processor = type("Pinpoints", (), {"image_grid_pinpoints": pinpoints(config)})
    return processor._get_number_of_features(height, width, config.tile_px, config.tile_px)


def pinpoints(config: AnyresConfig) -> list[list[int]]:
    return [[rows * config.tile_px, columns * config.tile_px] for columns, rows in config.grids]


def transformers_map(width: int, height: int, config: AnyresConfig) -> tuple[int, int]:
    """(columns, rows) of the map that transformers' model unpads."""
    high, wide = select_best_resolution((height, width), pinpoints(config))
    columns, rows = (side // config.tile_px * config.tile_cells for side in (wide, high))
    cut = unpad_image(torch.empty(0, rows, columns), (height, width))
    return cut.shape[2], cut.shape[1]


def agrees(width: int, height: int, config: AnyresConfig) -> bool:
    plan = plan_anyres(width, height, config)
    return (
        plan.num_tokens == transformers_tokens(width, height, config)
        and plan.unpadded == transformers_map(width, height, config)
        and plan.grid is not None
        and (plan.grid[1] * config.tile_px, plan.grid[0] * config.tile_px)
        == select_best_resolution((height, width), pinpoints(config))
    )


def test_thousands_of_sizes_count_as_in_transformers() -> None:
    draw = random.Random(0)
    small = AnyresConfig(tile_px=56, patch_px=14, grids=square_grids(4), max_tiles=3)  # even, unlike 27
    sizes = [(int(2 ** draw.uniform(0, 12.5)), int(2 ** draw.uniform(0, 12.5))) for _ in range(2000)]
    wrong = [(size, config) for size in sizes for config in (RELEASED, small) if not agrees(*size, config)]
    assert wrong == []


@given(side_px, side_px, st.integers(1, 9), st.sampled_from([28, 56, 70, 384]))
def test_any_size_counts_as_in_transformers(width: int, height: int, max_tiles: int, tile_px: int) -> None:
    assert agrees(width, height, AnyresConfig(tile_px=tile_px, max_tiles=max_tiles))


@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_views_and_plan_agree(width: int, height: int, alone: bool) -> None:
    config = AnyresConfig(tile_px=32, patch_px=14, grids=square_grids(3))
    plan = plan_anyres(width, height, config, alone=alone)
    views = cut_views(Image.new("RGB", (width, height), "white"), plan)
    assert [view.shape[1::-1] for view in views] == [view.size for view in plan.views]


def test_tiles_are_centred_on_black_and_the_base_view_is_squashed() -> None:
    config = AnyresConfig(tile_px=8, patch_px=4, grids=[(2, 1)])
    base, left, right = cut_views(Image.new("RGB", (8, 8), "white"), plan_anyres(8, 8, config))
    assert base[..., :3].unique().tolist() == [255]
    assert left[0, :, 0].tolist() == left[7, :, 2].tolist() == [0] * 4 + [255] * 4
    assert right[0, :, 0].tolist() == right[7, :, 2].tolist() == [255] * 4 + [0] * 4


def test_an_image_among_others_is_padded_to_a_square_in_the_mean_colour() -> None:
    config = AnyresConfig(tile_px=8, patch_px=4)
    plan = plan_anyres(8, 2, config, alone=False)
    (view,) = cut_views(Image.new("RGB", (8, 2), "white"), plan, (0.5, 0.25, 0.0))
    assert view[:, 0, :3].tolist() == [[127, 63, 0]] * 3 + [[255] * 3] * 2 + [[127, 63, 0]] * 3


def test_pixels_beyond_the_last_whole_patch_are_never_seen() -> None:
    config = AnyresConfig(tile_px=10, patch_px=4, grids=[(1, 1)])
    image = Image.new("RGB", (10, 10), "white")
    image.paste("red", (8, 8, 10, 10))
    base, tile = cut_views(image, plan_anyres(10, 10, config))
    assert base.shape[:2] == tile.shape[:2] == (8, 8)
    assert base[..., :3].unique().tolist() == tile[..., :3].unique().tolist() == [255]


def test_a_picture_of_another_size_than_planned_is_refused() -> None:
    with pytest.raises(UserError, match="the plan is for 9x8 px"):
        cut_views(Image.new("RGB", (8, 8)), plan_anyres(9, 8, RELEASED))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tile_px": 10}, "smaller than one cell"),
        ({"align_px": 20}, "not a positive multiple"),
        ({"grids": [(0, 1)]}, "without a tile"),
        ({"max_tiles": 0}, "below 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AnyresConfig(**settings)


def test_without_grids_an_image_is_its_base_view_and_a_newline() -> None:
    plan = plan_anyres(640, 480, AnyresConfig(grids=square_grids(0)))
    assert (plan.grid, len(plan.views), plan.num_tokens) == (None, 1, 730)


def test_an_image_without_area_is_refused() -> None:
    with pytest.raises(UserError, match="no area"):
        plan_anyres(0, 5, RELEASED)
