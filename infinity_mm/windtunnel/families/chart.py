"""Family `chart`: two to four bars with a word below and a whole number above each."""

import random
from typing import Final

from PIL import Image, ImageDraw

from infinity_mm.windtunnel.families.base import (
    Family,
    Layout,
    num_characters,
    pick_cosmetic,
    pick_font_px,
    pick_size,
    shade,
    text_budget,
    text_width_px,
    tint,
    write,
)
from infinity_mm.windtunnel.scene import Bar, Box, ChartFacts, Scene
from infinity_mm.windtunnel.words import COLOR_NAMES, COLORS, ITEMS, MAX_VALUE, TITLES

_USUAL: Final = (
    (64, 64), (64, 96), (80, 80), (96, 96), (128, 64), (112, 112), (128, 96), (128, 128), (96, 128),
    (192, 80), (160, 96), (256, 64),
)  # fmt: skip
_BIG: Final = ((192, 144), (192, 192), (256, 192))
_INK: Final = (20, 20, 24)


def sample(rng: random.Random) -> Scene:
    """Draw until the words fit below their bars and into the text budget."""
    num_bars = rng.choice((2, 3, 4))
    while True:
        width, height = pick_size(rng, _USUAL, _BIG)
        title = rng.choice(TITLES) if height >= 80 and rng.random() < 0.5 else ""
        labels, colors = rng.sample(ITEMS, num_bars), rng.sample(COLOR_NAMES, num_bars)
        bars = tuple(
            Bar(label=label, value=rng.randint(1, MAX_VALUE), color=color)
            for label, color in zip(labels, colors, strict=True)
        )
        facts = ChartFacts(bars=bars, title=title)
        font_px = pick_font_px(rng, width, height)
        fits = all(text_width_px(label, font_px) <= width / num_bars - 2 for label in labels)
        if fits and num_characters(drawn_texts(facts)) <= text_budget(width, height):
            cosmetic = pick_cosmetic(rng, font_px)
            return Scene(family="chart", width=width, height=height, facts=facts, cosmetic=cosmetic)


def drawn_texts(facts: ChartFacts) -> list[str]:
    """Everything that is written on the image with these facts."""
    return [facts.title, *(bar.label for bar in facts.bars), *(str(bar.value) for bar in facts.bars)]


def layout(scene: Scene) -> Layout:
    """`bar/i` with `label/i` below and `value/i` above it, and `title` where there is one."""
    assert isinstance(scene.facts, ChartFacts)
    rng = random.Random(scene.cosmetic.seed)
    band = scene.cosmetic.font_px + 3
    top = band if scene.facts.title else 0
    floor = scene.height - band - 1
    room = floor - top - band
    step = scene.width / len(scene.facts.bars)
    half = step * rng.uniform(0.24, 0.36)
    boxes: Layout = {}
    if scene.facts.title:
        boxes["title"] = Box(0, 0, scene.width, band)
    for i, bar in enumerate(scene.facts.bars):
        center = (i + 0.5) * step
        roof = floor - max(2, round(room * bar.value / MAX_VALUE))
        boxes[f"bar/{i}"] = Box(round(center - half), roof, round(center + half), floor)
        boxes[f"value/{i}"] = Box(i * step, roof - band, (i + 1) * step, roof)
        boxes[f"label/{i}"] = Box(i * step, floor, (i + 1) * step, floor + band)
    return boxes


def draw(scene: Scene, boxes: Layout, image: Image.Image) -> None:
    """Bars on one base line, all words in black."""
    assert isinstance(scene.facts, ChartFacts)
    rng = random.Random(scene.cosmetic.seed + 1)
    image.paste(tint(rng), (0, 0, scene.width, scene.height))
    pen = ImageDraw.Draw(image)
    font_px = scene.cosmetic.font_px
    for i, bar in enumerate(scene.facts.bars):
        box = boxes[f"bar/{i}"]
        pen.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=shade(rng, COLORS[bar.color]))
        write(pen, boxes[f"value/{i}"], str(bar.value), font_px, _INK)
        write(pen, boxes[f"label/{i}"], bar.label, font_px, _INK)
    floor = boxes["bar/0"].y1
    pen.line((1, floor, scene.width - 2, floor), fill=(120, 120, 120))
    if scene.facts.title:
        write(pen, boxes["title"], scene.facts.title, font_px, _INK)


def texts(scene: Scene) -> list[str]:
    """Everything that is written on the image."""
    assert isinstance(scene.facts, ChartFacts)
    return drawn_texts(scene.facts)


FAMILY: Final = Family(sample=sample, layout=layout, texts=texts, draw=draw)
