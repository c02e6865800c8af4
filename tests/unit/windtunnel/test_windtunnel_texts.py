import random
import re
from html import unescape
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from truth_cases import CHART, FORM, SHAPES, SIGN, TABLE, scene_of

from infinity_mm.windtunnel import captions
from infinity_mm.windtunnel.gallery import write_gallery
from infinity_mm.windtunnel.scene import ShapesFacts
from infinity_mm.windtunnel.tags import VOCABULARY, tags
from infinity_mm.windtunnel.world import drawn_texts, sample_scene


def dense(facts_of: object) -> str:
    return captions.dense(scene_of(facts_of), random.Random(0))  # pyright: ignore[reportArgumentType]


def test_dense_captions_tell_every_fact_in_reading_order() -> None:
    assert [
        dense(facts).partition(" ")[2].partition(" ")[2] for facts in (SHAPES, CHART, TABLE, SIGN, FORM)
    ] == [
        "a large red circle at the top left and a small blue star at the bottom.",
        "a bar chart titled Sales with 2 bars. Tea is 12 and red. Rice is 7 and blue.",
        "a table with Item, Qty and Cost. Tea: Qty 12 and Cost 5. Rice: Qty 7 and Cost 40.",
        "a red sign with 2 lines. Line 1 says STOP. Line 2 says EXIT.",
        "a form with 2 lines. Line 1 says Name: Ana. Line 2 says Total: 47.",
    ]


@given(index=st.integers(0, 100_000))
def test_everything_that_is_written_or_drawn_is_in_the_dense_caption(index: int) -> None:
    scene = sample_scene(world_seed=0, index=index, split="train")
    caption = captions.dense(scene, random.Random(index))
    assert all(text in caption for text in drawn_texts(scene))
    if isinstance(scene.facts, ShapesFacts):
        for thing in scene.facts.things:
            assert f"{thing.size} {thing.color} {thing.shape} at the {thing.place}" in caption


def test_short_captions_give_the_gist_in_one_sentence() -> None:
    texts = [
        captions.short(scene_of(facts), random.Random(1)) for facts in (SHAPES, CHART, TABLE, SIGN, FORM)
    ]
    assert texts == [
        "The image shows a red circle and a blue star.",
        "The image shows a bar chart of Tea and Rice.",
        "The image shows a table of Tea and Rice.",
        "The image shows a red sign that says STOP EXIT.",
        "The image shows a form with Name and Total.",
    ]


def test_tags_come_in_the_order_of_the_vocabulary() -> None:
    assert tags(scene_of(SHAPES)) == ("shapes", "red", "blue", "circle", "star")
    assert tags(scene_of(CHART)) == ("bar chart", "number", "word", "red", "blue")
    assert tags(scene_of(TABLE)) == ("table", "number", "word")
    assert tags(scene_of(SIGN)) == ("sign", "word", "red")
    assert tags(scene_of(FORM)) == ("form", "number", "word")
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 20


def test_the_gallery_is_one_self_contained_page(tmp_path: Path) -> None:
    path = tmp_path / "gallery.html"
    write_gallery(path, world_seed=0, num_per_family=2)
    page = path.read_text(encoding="utf-8")
    assert page.count("<article>") == page.count("data:image/png;base64,") == 8
    assert not re.search(r'(?:src|href)="http', page)
    assert "Answer: " in unescape(page)
