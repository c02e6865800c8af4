"""Family `table`: a header row and two or three rows of one word and one or two numbers."""

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
    write,
)
from infinity_mm.windtunnel.scene import Box, Row, Scene, TableFacts
from infinity_mm.windtunnel.words import ITEM_HEADERS, ITEMS, NUMBER_HEADERS

_USUAL: Final = (
    (80, 64), (96, 64), (80, 80), (96, 96), (128, 64), (128, 80), (112, 112), (128, 96), (128, 128), (96, 128),
    (192, 80), (160, 96), (256, 64),
)  # fmt: skip
_BIG: Final = ((192, 144), (192, 192), (256, 192))
_INK: Final = (20, 20, 24)
_MARGIN_PX: Final = 2


def sample(rng: random.Random) -> Scene:
    """Draw until the columns fit side by side and the characters into the text budget."""
    num_rows, num_numbers = rng.choice((2, 3)), rng.choice((1, 2))
    while True:
        width, height = pick_size(rng, _USUAL, _BIG)
        headers = (rng.choice(ITEM_HEADERS), *rng.sample(NUMBER_HEADERS, num_numbers))
        rows = tuple(
            Row(item=item, numbers=tuple(rng.randint(0, 99) for _ in range(num_numbers)))
            for item in rng.sample(ITEMS, num_rows)
        )
        facts = TableFacts(headers=headers, rows=rows)
        font_px = pick_font_px(rng, width, height)
        needed = sum(column_widths_px(facts, font_px)) + 2 * _MARGIN_PX
        fits = needed <= width and (num_rows + 1) * (font_px + 3) + 2 * _MARGIN_PX <= height
        if fits and num_characters(drawn_texts(facts)) <= text_budget(width, height):
            cosmetic = pick_cosmetic(rng, font_px)
            return Scene(family="table", width=width, height=height, facts=facts, cosmetic=cosmetic)


def drawn_texts(facts: TableFacts) -> list[str]:
    """Everything that is written on the image with these facts."""
    return [text for row in cell_texts(facts) for text in row]


def cell_texts(facts: TableFacts) -> list[tuple[str, ...]]:
    """The header row and the rows below it, as drawn."""
    return [facts.headers, *((row.item, *map(str, row.numbers)) for row in facts.rows)]


def column_widths_px(facts: TableFacts, font_px: int) -> list[float]:
    """Least width of each column, with some air on both sides."""
    columns = zip(*cell_texts(facts), strict=True)
    return [max(text_width_px(text, font_px) for text in column) + 4 for column in columns]


def layout(scene: Scene) -> Layout:
    """`cell/r/c`, where row 0 holds the headers; spare room is shared out, and a little is left as jitter."""
    assert isinstance(scene.facts, TableFacts)
    rng = random.Random(scene.cosmetic.seed)
    widths = column_widths_px(scene.facts, scene.cosmetic.font_px)
    spare = (scene.width - 2 * _MARGIN_PX - sum(widths)) / len(widths) * rng.uniform(0.6, 1.0)
    num_rows = len(scene.facts.rows) + 1
    row_height = min(
        (scene.height - 2 * _MARGIN_PX) / num_rows, scene.cosmetic.font_px * rng.uniform(1.6, 2.6)
    )
    x = left = round((scene.width - sum(widths) - spare * len(widths)) * rng.random() / 2) + _MARGIN_PX
    top = round((scene.height - 2 * _MARGIN_PX - num_rows * row_height) * rng.random()) + _MARGIN_PX
    boxes: Layout = {}
    for c, column_width in enumerate(widths):
        right = min(x + column_width + spare, scene.width - _MARGIN_PX)
        for r in range(num_rows):
            boxes[f"cell/{r}/{c}"] = Box(
                round(x), round(top + r * row_height), round(right), round(top + (r + 1) * row_height)
            )
        x = right
    boxes["table"] = Box(left, top, round(x), round(top + num_rows * row_height))
    return boxes


def draw(scene: Scene, boxes: Layout, image: Image.Image) -> None:
    """Thin gray rules and a tinted header row."""
    assert isinstance(scene.facts, TableFacts)
    rng = random.Random(scene.cosmetic.seed + 1)
    image.paste((255, 255, 255), (0, 0, scene.width, scene.height))
    pen = ImageDraw.Draw(image)
    header = shade(rng, rng.choice(((205, 220, 242), (214, 234, 212), (240, 224, 200), (226, 226, 226))), 6)
    for r, texts in enumerate(cell_texts(scene.facts)):
        for c, text in enumerate(texts):
            box = boxes[f"cell/{r}/{c}"]
            pen.rectangle(box, fill=header if r == 0 else None, outline=(176, 176, 176))
            write(pen, box, text, scene.cosmetic.font_px, _INK)


def texts(scene: Scene) -> list[str]:
    """Everything that is written on the image."""
    assert isinstance(scene.facts, TableFacts)
    return drawn_texts(scene.facts)


FAMILY: Final = Family(sample=sample, layout=layout, texts=texts, draw=draw)
