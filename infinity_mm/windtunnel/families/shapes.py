"""Family `shapes`: one to four colored shapes on a 3 x 3 grid of places."""

import math
import random
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw

from infinity_mm.windtunnel.families.base import Family, Layout, pick_cosmetic, pick_size, shade, tint
from infinity_mm.windtunnel.scene import Box, Scene, ShapesFacts, Thing
from infinity_mm.windtunnel.words import COLOR_NAMES, COLORS, SHAPES, SIZES

_USUAL: Final = (
    (64, 64), (80, 80), (96, 96), (128, 128), (96, 64), (128, 64), (64, 96), (64, 128), (128, 96), (96, 128),
    (192, 80), (80, 192), (256, 64), (64, 256),
)  # fmt: skip
_BIG: Final = ((192, 192), (256, 192), (192, 256))
_SIDE_SHARE: Final = {"small": 0.48, "large": 0.9}
_OVERSAMPLING: Final = 4


def sample(rng: random.Random) -> Scene:
    """Few objects, often sharing a color or a shape, so that counting and telling apart have something to do."""
    width, height = pick_size(rng, _USUAL, _BIG)
    num_things = rng.choices((1, 2, 3, 4), weights=(2, 3, 4, 4))[0]
    colors = rng.sample(COLOR_NAMES, 2) if rng.random() < 0.5 else COLOR_NAMES
    shapes = rng.sample(SHAPES, 2) if rng.random() < 0.4 else SHAPES
    things = [
        Thing(
            shape=rng.choice(shapes),
            color=rng.choice(colors),
            size=rng.choice(SIZES),
            row=place // 3,
            column=place % 3,
        )
        for place in sorted(rng.sample(range(9), num_things))
    ]
    return Scene(
        family="shapes",
        width=width,
        height=height,
        facts=ShapesFacts(things=tuple(things)),
        cosmetic=pick_cosmetic(rng, font_px=0),
    )


def layout(scene: Scene) -> Layout:
    """`thing/i`: a square inside the cell of its place, shifted by jitter."""
    assert isinstance(scene.facts, ShapesFacts)
    rng = random.Random(scene.cosmetic.seed)
    cell_width, cell_height = scene.width / 3, scene.height / 3
    boxes: Layout = {}
    for i, thing in enumerate(scene.facts.things):
        side = round(_SIDE_SHARE[thing.size] * min(cell_width, cell_height))
        # On a long image a cell is wide: jitter stays within one side length, so that places stay clear.
        slack_x, slack_y = min((cell_width - side) / 2, side), min((cell_height - side) / 2, side)
        left = round((thing.column + 0.5) * cell_width - side / 2 + rng.uniform(-0.8, 0.8) * slack_x)
        top = round((thing.row + 0.5) * cell_height - side / 2 + rng.uniform(-0.8, 0.8) * slack_y)
        boxes[f"thing/{i}"] = Box(left, top, left + side, top + side)
    return boxes


def draw(scene: Scene, boxes: Layout, image: Image.Image) -> None:
    """Paste each shape through an oversampled mask: smooth edges at 10 px."""
    assert isinstance(scene.facts, ShapesFacts)
    rng = random.Random(scene.cosmetic.seed + 1)
    image.paste(tint(rng), (0, 0, scene.width, scene.height))
    for i, thing in enumerate(scene.facts.things):
        box = boxes[f"thing/{i}"]
        mask = _mask(thing.shape, round(box.x1 - box.x0))
        image.paste(shade(rng, COLORS[thing.color]), (round(box.x0), round(box.y0)), mask)


@lru_cache(maxsize=512)
def _mask(shape: str, side_px: int) -> Image.Image:
    full = side_px * _OVERSAMPLING
    mask = Image.new("L", (full, full))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, full - 1, full - 1), fill=255)
    elif shape == "square":
        pen.rectangle((full * 0.06, full * 0.06, full * 0.94, full * 0.94), fill=255)
    elif shape == "cross":
        pen.rectangle((full * 0.34, 0, full * 0.66, full), fill=255)
        pen.rectangle((0, full * 0.34, full, full * 0.66), fill=255)
    else:
        pen.polygon([(x * full, y * full) for x, y in _outline(shape)], fill=255)
    return mask.resize((side_px, side_px), Image.Resampling.BOX)


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(0.5, 0.02), (1.0, 0.98), (0.0, 0.98)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)]
    radii = (0.53, 0.21)
    return [
        (0.5 + radii[k % 2] * math.sin(k * math.pi / 5), 0.53 - radii[k % 2] * math.cos(k * math.pi / 5))
        for k in range(10)
    ]


FAMILY: Final = Family(sample=sample, layout=layout, texts=lambda scene: [], draw=draw)
