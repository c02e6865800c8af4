"""The slice planner against the published reference functions, and its promises for any size."""

import json
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.vision.slicing import AspectGuard, SliceConfig, area_used, aspect_error, plan_slices

GOLDEN = Path(__file__).parents[2] / "golden" / "uhd_slicing.json"
VARIANT = re.compile(r"(uhd_jul2024_floor|minicpmv_round)_s(\d+)_m(\d+)$")


def golden_cases() -> list[tuple[int, int, str, dict[str, list[int] | None]]]:
    cases = json.loads(GOLDEN.read_text())["cases"]
    return [
        (case["width"], case["height"], name, expected)
        for case in cases
        for name, expected in case.items()
        if VARIANT.match(name)
    ]


def config_of(variant: str, guard: AspectGuard | None) -> SliceConfig:
    found = VARIANT.match(variant)
    assert found is not None
    family, scale, most = found.groups()
    return SliceConfig(
        scale_px=int(scale),
        max_slices=int(most),
        rounding="round" if family == "minicpmv_round" else "floor",
        aspect_guard=guard,
    )


@pytest.mark.parametrize(("width", "height", "variant", "expected"), golden_cases())
def test_plan_equals_the_published_reference(
    width: int, height: int, variant: str, expected: dict[str, list[int] | None]
) -> None:
    plan = plan_slices(width, height, config_of(variant, None))
    assert plan.grid == (tuple(expected["grid_cols_rows"]) if expected["grid_cols_rows"] else None)
    assert plan.slice_size == (tuple(expected["slice_wh"]) if expected["slice_wh"] else None)
    assert plan.overview_size == tuple(expected["overview_wh"] or ())


@pytest.mark.parametrize(("width", "height", "variant", "expected"), golden_cases())
def test_guard_changes_nothing_up_to_its_limit(
    width: int, height: int, variant: str, expected: dict[str, list[int] | None]
) -> None:
    if max(width, height) <= 60 * min(width, height):
        guarded = plan_slices(width, height, config_of(variant, AspectGuard()))
        assert guarded == plan_slices(width, height, config_of(variant, None))


@pytest.mark.parametrize(
    ("size", "grid", "slice_size", "overview"),
    [
        ((337, 336), (2, 1), (224, 462), (322, 322)),
        ((672, 1008), (2, 3), (336, 336), (266, 406)),
        ((100, 3000), (1, 4), (112, 910), (56, 1834)),
        ((3000, 100), (4, 1), (910, 112), (1820, 56)),
        ((1000, 1000), (3, 2), (266, 406), (336, 336)),
        ((4096, 4096), (3, 2), (266, 406), (336, 336)),
        ((1920, 1080), (3, 2), (364, 308), (448, 252)),
    ],
)
def test_floor_336_with_six_slices_on_sizes_known_by_heart(
    size: tuple[int, int], grid: tuple[int, int], slice_size: tuple[int, int], overview: tuple[int, int]
) -> None:
    plan = plan_slices(*size, SliceConfig(scale_px=336, max_slices=6))
    assert (plan.grid, plan.slice_size, plan.overview_size) == (grid, slice_size, overview)


def test_views_are_the_overview_then_slices() -> None:
    plan = plan_slices(672, 1008, SliceConfig(scale_px=336, max_slices=6))
    assert [view.size for view in plan.views] == [(266, 406)] + [(336, 336)] * 6
    assert plan.view_shapes == [(29, 19)] + [(24, 24)] * 6
    assert plan.num_slices == 6
    assert plan.num_tokens == plan.num_patches == 29 * 19 + 6 * 24 * 24


def test_merging_cells_count_tokens_apart_from_patches() -> None:
    plan = plan_slices(128, 128, SliceConfig(scale_px=64, max_slices=4, patch_px=8, align_px=16))
    assert [view.patches for view in plan.views] == [(8, 8)] * 5
    assert [view.cells for view in plan.views] == [(4, 4)] * 5
    assert (plan.num_patches, plan.num_tokens) == (320, 80)


def test_a_fixed_number_of_tokens_a_view_replaces_cells() -> None:
    plan = plan_slices(672, 1008, SliceConfig(scale_px=336, max_slices=6, view_tokens=64))
    assert [view.num_tokens for view in plan.views] == [64] * 7
    assert (plan.num_tokens, plan.num_patches) == (7 * 64, 29 * 19 + 6 * 24 * 24)


def test_area_used_is_what_alignment_leaves_of_the_budget() -> None:
    exact = SliceConfig(scale_px=392, max_slices=6, align_px=28)
    assert area_used(plan_slices(392, 392, exact), exact) == 1
    coarse = SliceConfig(scale_px=378, max_slices=6, align_px=28)  # 364 x 364 is the next multiple
    assert area_used(plan_slices(378, 378, coarse), coarse) == pytest.approx((364 / 378) ** 2)


def test_aspect_error_is_the_stretch_of_the_worst_view() -> None:
    config = SliceConfig(scale_px=392, max_slices=6, align_px=28)
    assert aspect_error(plan_slices(392, 392, config)) == 1
    plan = plan_slices(1000, 500, config)
    assert (plan.grid, plan.slice_size, plan.overview_size) == ((3, 1), (308, 476), (532, 252))
    assert aspect_error(plan) == pytest.approx(max(532 / 252 / 2, (2 / 3) / (308 / 476)))


@pytest.mark.parametrize(
    ("scale_px", "align_px", "area", "stretch"),
    [(378, 14, 0.9, 1.08), (392, 28, 0.85, 1.13), (448, 56, 0.74, 1.26)],
)
def test_presets_keep_area_and_aspect(scale_px: int, align_px: int, area: float, stretch: float) -> None:
    # The figures of docs/model.md: images of aspect up to 4.
    config = SliceConfig(scale_px=scale_px, max_slices=6, align_px=align_px)
    rng = random.Random(0)
    for _ in range(500):
        side, aspect = 2 ** rng.uniform(8, 11.5), 2 ** rng.uniform(-2, 2)
        plan = plan_slices(int(side * aspect**0.5), int(side / aspect**0.5), config)
        assert area_used(plan, config) > area
        assert aspect_error(plan) < stretch


@pytest.mark.parametrize("max_slices", [0, 1])
def test_one_slice_or_none_means_never_sliced(max_slices: int) -> None:
    plan = plan_slices(4000, 3000, SliceConfig(scale_px=336, max_slices=max_slices))
    assert plan.grid is None
    assert plan.num_slices == 0


def test_refusing_guard_explains_itself() -> None:
    with pytest.raises(UserError, match=r"3000x1 px.*\n.*\n.*max_aspect"):
        plan_slices(3000, 1, SliceConfig(scale_px=336, max_slices=6))


def test_guard_allows_exactly_its_limit() -> None:
    assert plan_slices(600, 10, SliceConfig(scale_px=336, max_slices=6)).canvas_size == (600, 10)
    with pytest.raises(UserError):
        plan_slices(601, 10, SliceConfig(scale_px=336, max_slices=6))


@pytest.mark.parametrize(("size", "canvas"), [((3000, 1), (3000, 50)), ((1, 200_000), (3334, 200_000))])
def test_padding_guard_plans_for_an_enlarged_short_side(
    size: tuple[int, int], canvas: tuple[int, int]
) -> None:
    padding = SliceConfig(scale_px=336, max_slices=6, aspect_guard=AspectGuard(action="pad"))
    plan = plan_slices(*size, padding)
    assert plan.canvas_size == canvas
    assert plan.views == plan_slices(*canvas, SliceConfig(scale_px=336, max_slices=6)).views


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-3, 10)])
def test_sizes_without_area_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="no area"):
        plan_slices(*size, SliceConfig(scale_px=336, max_slices=6))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale_px": 10},
        {"max_slices": -1},
        {"patch_px": 0},
        {"align_px": 20},
        {"rounding": "up"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError):
        SliceConfig(**{"scale_px": 336, "max_slices": 6, **wrong})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("wrong", [{"max_aspect": 0.5}, {"action": "crop"}])
def test_impossible_guards_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        AspectGuard(**wrong)  # pyright: ignore[reportArgumentType]


@settings(deadline=None)
@given(
    short=st.integers(1, 5000),
    aspect=st.floats(1, 59),
    upright=st.booleans(),
    scale_px=st.sampled_from([336, 378, 384, 448]),
    merge=st.sampled_from([1, 2]),
    max_slices=st.integers(0, 12),
    rounding=st.sampled_from(["floor", "round"]),
)
def test_any_size_in_the_domain_gives_a_sound_plan(
    short: int, aspect: float, upright: bool, scale_px: int, merge: int, max_slices: int, rounding: str
) -> None:
    config = SliceConfig(
        scale_px=scale_px,
        max_slices=max_slices,
        align_px=14 * merge,
        rounding=rounding,  # pyright: ignore[reportArgumentType]
    )
    long = max(short, int(short * aspect))
    width, height = (short, long) if upright else (long, short)
    plan = plan_slices(width, height, config)

    cell = 14 * merge
    assert all(side % cell == 0 and side >= cell for view in plan.views for side in view.size)
    assert plan.num_tokens == sum(view.size[0] * view.size[1] // cell**2 for view in plan.views)
    assert plan.num_patches == plan.num_tokens * merge**2
    assert len(plan.views) == plan.num_slices + 1
    assert plan.num_slices <= max_slices
    assert plan.num_slices != 1
    assert (plan.grid is None) == (width * height <= scale_px**2 or max_slices <= 1)
    if rounding == "floor" and all(min(view.cells) > 1 for view in plan.views):
        # Away from the one-cell minimum, flooring never exceeds the area budget.
        assert all(view.size[0] * view.size[1] <= scale_px**2 for view in plan.views)


@settings(deadline=None)
@given(short=st.integers(1, 2000), aspect=st.floats(1, 6), upright=st.booleans())
def test_moderate_aspects_give_slices_near_square_as_the_paper_says(
    short: int, aspect: float, upright: bool
) -> None:
    long = max(short, int(short * aspect))
    width, height = (short, long) if upright else (long, short)
    plan = plan_slices(width, height, SliceConfig(scale_px=336, max_slices=20))
    if plan.slice_size is not None:
        # The paper's bound is 2; alignment to patches adds at most one patch to one side.
        assert max(plan.slice_size) <= 2 * min(plan.slice_size) + 28


@settings(deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_padding_guard_never_raises(width: int, height: int) -> None:
    config = SliceConfig(scale_px=336, max_slices=6, aspect_guard=AspectGuard(action="pad"))
    canvas = plan_slices(width, height, config).canvas_size
    assert max(canvas) <= 60 * min(canvas)
    assert max(canvas) == max(width, height)
    assert math.prod(canvas) >= width * height


@settings(deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    scale_px=st.sampled_from([336, 384, 448]),
    max_slices=st.integers(0, 16),
)
def test_plan_equals_minicpm_in_transformers(width: int, height: int, scale_px: int, max_slices: int) -> None:
    module = pytest.importorskip("transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6")
    theirs = module.MiniCPMV4_6ImageProcessorPil()
    config = SliceConfig(
        scale_px=scale_px, max_slices=max_slices, rounding="round", align_px=56, aspect_guard=None
    )
    plan = plan_slices(width, height, config)
    size = (height, width)
    grid = theirs.get_sliced_grid(size, max_slices, scale_px)
    overview = theirs.find_best_resize(size, scale_px, 14, allow_upscale=grid is None)
    assert plan.overview_size == overview[::-1]
    if grid is None:
        assert plan.grid is None
    else:
        sheet_height, sheet_width = theirs.get_refine_size(size, grid, scale_px, 14, allow_upscale=True)
        assert plan.grid == (grid[1], grid[0])
        assert plan.slice_size == (sheet_width // grid[1], sheet_height // grid[0])
