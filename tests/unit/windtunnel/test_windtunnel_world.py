import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infinity_mm.errors import UserError
from infinity_mm.windtunnel import words
from infinity_mm.windtunnel.families import FAMILY_BY_NAME, document
from infinity_mm.windtunnel.families.base import font, num_characters, text_width_px
from infinity_mm.windtunnel.world import (
    boxes_px,
    drawn_texts,
    png_bytes,
    render,
    sample_scene,
    text_budget,
)

INDEX = st.integers(0, 100_000)
FAMILY = st.sampled_from(words.FAMILIES)


@pytest.mark.parametrize(
    ("width", "height", "budget"),
    [(64, 64, 16), (128, 64, 32), (128, 128, 64), (192, 80, 60), (256, 192, 64)],
)
def test_the_text_budget_is_one_character_per_visual_token(width: int, height: int, budget: int) -> None:
    assert text_budget(width, height) == budget


@given(index=INDEX, family=FAMILY)
def test_no_image_shows_more_characters_than_its_budget(index: int, family: str) -> None:
    scene = sample_scene(world_seed=0, index=index, split="train", family=family)
    assert num_characters(drawn_texts(scene)) <= text_budget(scene.width, scene.height)


@given(index=INDEX, family=FAMILY)
def test_everything_is_drawn_inside_the_image(index: int, family: str) -> None:
    scene = sample_scene(world_seed=0, index=index, split="train", family=family)
    for box in boxes_px(scene).values():
        assert -0.5 <= box.x0 < box.x1 <= scene.width + 0.5
        assert -0.5 <= box.y0 < box.y1 <= scene.height + 0.5


@given(index=INDEX, family=FAMILY, split=st.sampled_from(["train", "held_out"]))
def test_the_same_number_gives_the_same_scene_and_the_same_picture(
    index: int, family: str, split: str
) -> None:
    first, second = (
        sample_scene(
            world_seed=5, index=index, split="train" if split == "train" else "held_out", family=family
        )
        for _ in range(2)
    )
    assert first == second
    assert png_bytes(first) == png_bytes(second)
    assert first.is_held_out() == (split == "held_out")


def test_families_take_turns() -> None:
    found = [sample_scene(world_seed=0, index=i, split="train").family for i in range(4)]
    assert found == ["shapes", "chart", "table", "document"]


def test_an_unknown_family_is_refused_with_the_known_names() -> None:
    with pytest.raises(UserError, match="shapes, chart, table, document"):
        sample_scene(world_seed=0, index=0, split="train", family="clock")


def test_train_and_held_out_share_no_content() -> None:
    train = {sample_scene(world_seed=0, index=i, split="train").content_hash() for i in range(800)}
    held_out = {sample_scene(world_seed=0, index=i, split="held_out").content_hash() for i in range(400)}
    assert not train & held_out


def test_about_a_tenth_of_the_world_is_held_out() -> None:
    rng = random.Random(0)
    scenes = [FAMILY_BY_NAME[words.FAMILIES[i % 4]].sample(rng) for i in range(4000)]
    assert 0.08 < sum(scene.is_held_out() for scene in scenes) / len(scenes) < 0.12


def test_a_picture_has_the_size_of_its_scene_and_survives_png() -> None:
    scene = sample_scene(world_seed=0, index=2, split="train")
    with Image.open(io.BytesIO(png_bytes(scene))) as image:
        assert image.size == (scene.width, scene.height)
        assert image.convert("RGB").tobytes() == render(scene).tobytes()


def test_a_large_red_circle_is_red_in_the_middle_of_its_box() -> None:
    for index in range(200):
        scene = sample_scene(world_seed=0, index=index, split="train", family="shapes")
        layout, image = boxes_px(scene), render(scene)
        for i, thing in enumerate(scene.facts.things):  # pyright: ignore[reportAttributeAccessIssue]
            box = layout[f"thing/{i}"]
            pixel = image.getpixel((int((box.x0 + box.x1) / 2), int((box.y0 + box.y1) / 2)))
            assert isinstance(pixel, tuple)
            wanted = words.COLORS[thing.color]
            assert all(abs(seen - want) <= 12 for seen, want in zip(pixel, wanted, strict=True))


def test_images_are_small_with_a_few_large_and_long_ones() -> None:
    sizes = [sample_scene(world_seed=0, index=i, split="train") for i in range(1000)]
    large = sum(scene.width * scene.height > 128 * 128 for scene in sizes) / len(sizes)
    ratios = [scene.width / scene.height for scene in sizes]
    assert 0.01 < large < 0.12
    assert (min(ratios), max(ratios)) == (0.25, 4.0)


@pytest.mark.parametrize("font_px", [10, 13, 22])
def test_drawn_words_are_never_wider_than_sampling_assumes(font_px: int) -> None:
    fields = [f"{field}: WWW" for field in words.FIELDS]
    for text in (*words.ITEMS, *words.TITLES, *words.NUMBER_HEADERS, *words.SIGN_WORDS, *fields, "20", "99"):
        assert font(font_px).getlength(text) <= text_width_px(text, font_px)


def test_no_code_reads_as_an_article(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "CODE_CHARACTERS", "THE")
    rng = random.Random(0)
    codes = {document.field_value(rng, "Code") for _ in range(400)}
    assert len(codes) == 3**3 - 1
    assert "THE" not in codes
