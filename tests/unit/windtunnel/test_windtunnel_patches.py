"""Labels of patches: each patch is told what the scene shows there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from infinity_mm.vision.slicing import SliceConfig, SlicePlan, plan_slices
from infinity_mm.windtunnel import world
from infinity_mm.windtunnel.patch_labels import (
    HEADS,
    NOTHING,
    POSITION_BINS,
    UNKNOWN,
    glyphs,
    patch_labels,
    regions,
)
from infinity_mm.windtunnel.scene import (
    Bar,
    ChartFacts,
    Cosmetic,
    DocumentFacts,
    Line,
    Scene,
    ShapesFacts,
    Thing,
)
from infinity_mm.windtunnel.tower_training import head_losses

WHOLE = SliceConfig(scale_px=64, max_slices=0, patch_px=8, align_px=16)
SLICED = SliceConfig(scale_px=64, max_slices=4, patch_px=8, align_px=16)


def scene(family: str, facts: object, width: int = 64, height: int = 64) -> Scene:
    cosmetic = Cosmetic(seed=1, font_px=12)
    return Scene(family=family, width=width, height=height, facts=facts, cosmetic=cosmetic)  # pyright: ignore


def names(scene: Scene, plan: SlicePlan, head: str) -> list[np.ndarray]:
    """Class names of each view, (rows, columns); `.` is nothing, `?` is unknown."""
    classes, views, start = patch_labels(scene, plan)[head], [], 0
    for rows, columns in plan.view_shapes:
        view = classes[start : start + rows * columns].reshape(rows, columns)
        told = {NOTHING: ".", UNKNOWN: "?"} | dict(enumerate(HEADS[head], 1))
        views.append(np.vectorize(told.get)(view))
        start += rows * columns
    assert start == len(classes)
    return views


def test_the_patches_of_a_large_red_star_at_the_bottom_right_say_so() -> None:
    thing = Thing(shape="star", color="red", size="large", row=2, column=2)
    one = scene("shapes", ShapesFacts(things=(thing,)))
    plan = plan_slices(64, 64, WHOLE)
    for head, name in (("kind", "star"), ("color", "red"), ("size", "large")):
        (view,) = names(one, plan, head)
        assert set(view[:5].ravel()) == set(view[:, :5].ravel()) == {"."}
        assert view[6, 6] == name


def test_a_slice_shows_its_part_of_the_image() -> None:
    thing = Thing(shape="circle", color="blue", size="large", row=2, column=2)
    one = scene("shapes", ShapesFacts(things=(thing,)), 128, 128)
    plan = plan_slices(128, 128, SLICED)
    overview, top_left, top_right, bottom_left, bottom_right = names(one, plan, "kind")
    assert {str(name) for view in (top_left, top_right, bottom_left) for name in view.ravel()} == {"."}
    assert "circle" in overview
    assert set(overview[:5].ravel()) == {"."}
    assert (bottom_right == "circle").sum() > 3 * (overview == "circle").sum()


def test_labels_follow_an_overview_that_comes_last() -> None:
    thing = Thing(shape="circle", color="red", size="large", row=2, column=2)
    one = scene("shapes", ShapesFacts(things=(thing,)), 128, 128)
    first = names(one, plan_slices(128, 128, SLICED), "kind")
    last = names(one, plan_slices(128, 128, replace(SLICED, overview="last")), "kind")
    assert len(last) == 5
    for a, b in zip([*first[1:], first[0]], last, strict=True):
        assert (a == b).all()


def test_a_bar_tells_its_color_its_value_and_its_label() -> None:
    bars = (Bar(label="Tea", value=20, color="green"), Bar(label="Egg", value=3, color="black"))
    one = scene("chart", ChartFacts(bars=bars, title=""))
    plan = plan_slices(64, 64, WHOLE)
    at = names(one, plan, "color")[0] == "green"
    assert at.any()
    assert set(names(one, plan, "word")[0][at]) == {"20"}
    assert set(names(one, plan, "row")[0][at]) == {"Tea"}


def test_a_word_that_no_list_holds_is_unknown_and_its_characters_are_not() -> None:
    one = scene(
        "document", DocumentFacts(kind="form", background="", lines=(Line(label="Code", value="4XK"),)), 96
    )
    plan = plan_slices(96, 64, WHOLE)
    assert set(names(one, plan, "word")[0].ravel()) == {".", "Code", "?"}
    assert set(names(one, plan, "row")[0].ravel()) == {".", "Code"}
    seen = {*names(one, plan, "left_character")[0].ravel(), *names(one, plan, "right_character")[0].ravel()}
    assert {"4", "X", "K"} <= seen <= {".", *"Code:4XK"}


def test_places_count_from_the_top_left_of_each_view() -> None:
    one = scene("shapes", ShapesFacts(things=()), 128, 128)
    labels = patch_labels(one, plan_slices(128, 128, SLICED))
    first = labels["x"][:64].reshape(8, 8)
    assert first.tolist() == [list(range(POSITION_BINS))] * 8
    assert (labels["x"][64:128] == labels["x"][:64]).all()
    assert (labels["y"][:64].reshape(8, 8) == first.T).all()


@pytest.mark.parametrize("index", range(40))
def test_every_character_that_is_drawn_lies_in_a_region_of_text_and_on_its_ink(index: int) -> None:
    one = world.sample_scene(world_seed=3, index=index, split="train")
    written = "".join(world.drawn_texts(one)).replace(" ", "")
    assert sorted(glyph.character for glyph in glyphs(one)) == sorted(written)
    texts = [region.box for region in regions(one) if region.names["kind"] == "text"]
    pixels = np.asarray(world.render(one).convert("L"), dtype=int)
    for glyph in glyphs(one):
        assert any(box.x0 - 1 <= glyph.x <= box.x1 + 1 and box.y0 <= glyph.y <= box.y1 for box in texts)
        x, y = round(glyph.x), round(glyph.y)
        window = pixels[max(0, y - 6) : y + 7, max(0, x - 4) : x + 5]
        assert window.max() - window.min() > 60


def test_the_loss_knows_no_unknown_patches_and_weighs_empty_ones_a_tenth() -> None:
    scores = {"color": torch.tensor([[0.0, 2.0], [0.0, 2.0], [9.0, -9.0]])}
    targets = {"color": torch.tensor([1, NOTHING, UNKNOWN])}
    right, wrong = 0.126928, 2.126928
    assert head_losses(scores, targets)["color"].item() == pytest.approx(
        (right + 0.1 * wrong) / 1.1, abs=1e-5
    )
