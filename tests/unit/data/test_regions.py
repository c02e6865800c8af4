"""Boxes and points in every family's notation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.data.regions import region_marker, write_regions
from infinity_mm.errors import UserError
from infinity_mm.families import FAMILIES
from infinity_mm.record import Region

unit = st.floats(0, 1)


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    coords=st.tuples(unit, unit) | st.tuples(unit, unit, unit, unit),
    frame=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
)
def test_a_coordinate_is_off_by_half_a_unit_at_most(
    name: str, coords: tuple[float, ...], frame: tuple[int, int]
) -> None:
    notation = FAMILIES[name].notation
    again = notation.read(notation.write(coords, frame), frame)
    sides = frame if notation.grid is None else (notation.grid, notation.grid)
    assert len(again) == len(coords)
    for before, after, side in zip(coords, again, sides * 2):
        assert abs(before - after) <= 0.5 / side + 1e-9


@given(coords=st.tuples(unit, unit) | st.tuples(unit, unit, unit, unit), index=st.integers(0, 1))
def test_markers_carry_coordinates_to_a_millionth(coords: tuple[float, ...], index: int) -> None:
    notation = FAMILIES["qwen2_5_vl"].notation
    frames = [(10**6, 10**6)] * 2
    text = write_regions(f"a {region_marker(Region(index, coords))} b", notation, frames)
    again = notation.read(text.removeprefix("a ").removesuffix(" b"), frames[0])
    assert again == pytest.approx(coords, abs=1e-6)


def test_each_marker_is_written_in_the_frame_of_its_own_image() -> None:
    text = "<|region 0 0.5 0.5|> and <|region 1 0.5 0.5|>"
    written = write_regions(text, FAMILIES["qwen2_5_vl"].notation, [(100, 40), (60, 20)])
    assert written == '{"point_2d": [50, 20]} and {"point_2d": [30, 10]}'


def test_a_marker_of_an_image_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="speaks of image 2, but there are 1 images"):
        write_regions("<|region 2 0.5 0.5|>", FAMILIES["qwen3_vl"].notation, [(8, 8)])


@pytest.mark.parametrize("coords", ["1.5 0.5", "0.5 -0.1", "0.1 0.2 0.3", "12 30 60 80", "0.1 0.2 0.3 1.01"])
def test_a_marker_that_is_not_within_the_image_is_refused(coords: str) -> None:
    with pytest.raises(UserError, match="is no point or box: two or four numbers from 0 to 1"):
        write_regions(f"<|region 0 {coords}|>", FAMILIES["qwen3_vl"].notation, [(8, 8)])


def test_text_that_is_no_box_is_refused() -> None:
    with pytest.raises(UserError, match="is no box or point"):
        FAMILIES["internvl"].notation.read("left", (8, 8))
