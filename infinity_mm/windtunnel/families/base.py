"""What every family of images has in common: a sampler, a layout, a drawing, and the size of its type."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from infinity_mm.windtunnel.scene import Box, Cosmetic, Scene

Layout = dict[str, Box]
"""Where each element of a scene lies, in pixels; keys such as `bar/0`, `cell/1/2`, `line/0`."""
FONT_PX: Final = (10, 11, 12, 13)
FULL_AREA_PX: Final = 128 * 128
"""Largest image that the nano models see at full resolution."""
TOKEN_PX: Final = 16
"""Side of the square that one visual token covers at full resolution."""
_WIDTHS_EM: Final = {
    " :.Iijl": 0.31,
    "ftr": 0.4,
    "svxy": 0.55,
    "0123456789FYckz": 0.63,
    "EJKLVabep": 0.66,
    "APSTXZhnou": 0.7,
    "BCRUdgq": 0.75,
    "DGHNOQw": 0.82,
    "Mm": 0.93,
    "W": 1.0,
}
"""Widest that a character gets between 10 and 22 px (hinting rounds up), measured; a test compares."""
_WIDTH_EM: Final = {character: width for group, width in _WIDTHS_EM.items() for character in group}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of images."""

    sample: Callable[[random.Random], Scene]
    """Draw one scene."""
    layout: Callable[[Scene], Layout]
    """Where everything lies: a pure function of the scene."""
    texts: Callable[[Scene], list[str]]
    """Everything that is written on the image."""
    draw: Callable[[Scene, Layout, Image.Image], None]
    """Paint the scene on a fresh image."""


def text_budget(width: int, height: int) -> int:
    """How many characters (spaces not counted) may be drawn on an image of this size.

    One character per visual token, so that reading never asks more of the connector than one character per token:
    a token covers 16 x 16 px, and an image above 128 x 128 px of area is scaled down to it, so it has 64 tokens at
    most. 64 x 64 px gives 16 characters, 128 x 64 px 32, 128 x 128 px 64, 256 x 192 px still 64.
    """
    return min(width * height, FULL_AREA_PX) // (TOKEN_PX * TOKEN_PX)


def num_characters(texts: Sequence[str]) -> int:
    """Characters that cost budget: all but spaces."""
    return sum(len(text.replace(" ", "")) for text in texts)


def type_scale(width: int, height: int) -> float:
    """How much larger type must be drawn on an image that will be scaled down."""
    return max(1.0, (width * height / FULL_AREA_PX) ** 0.5)


def pick_font_px(rng: random.Random, width: int, height: int) -> int:
    """A type size that arrives at 10 to 13 px in the model's eyes."""
    return round(rng.choice(FONT_PX) * type_scale(width, height))


def pick_size(
    rng: random.Random, usual: Sequence[tuple[int, int]], big: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """An image size: one of the usual ones, or, once in 25 times, one that must be scaled down."""
    return rng.choice(big) if rng.random() < 0.04 else rng.choice(usual)


def pick_cosmetic(rng: random.Random, font_px: int) -> Cosmetic:
    """Fresh jitter and shades."""
    return Cosmetic(seed=rng.getrandbits(32), font_px=font_px)


def text_width_px(text: str, font_px: int) -> float:
    """Upper bound of the drawn width; own arithmetic, so that sampling does not depend on a font file."""
    return font_px * sum(_WIDTH_EM[character] for character in text)


@lru_cache(maxsize=64)
def font(font_px: int) -> ImageFont.FreeTypeFont:
    """The FreeType font that ships inside Pillow."""
    loaded = ImageFont.load_default(size=font_px)
    assert isinstance(loaded, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return loaded


def write(draw: ImageDraw.ImageDraw, box: Box, text: str, font_px: int, color: tuple[int, int, int]) -> None:
    """Write `text` in the middle of `box`, on whole pixels."""
    center = (round((box.x0 + box.x1) / 2), round((box.y0 + box.y1) / 2))
    draw.text(center, text, font=font(font_px), fill=color, anchor="mm")


def shade(rng: random.Random, color: tuple[int, int, int], spread: int = 12) -> tuple[int, int, int]:
    """A shade near `color`."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in color)
    return red, green, blue


def tint(rng: random.Random) -> tuple[int, int, int]:
    """A light, plain background."""
    return rng.choice(((255, 255, 255), (244, 244, 244), (234, 241, 250), (250, 245, 233), (236, 247, 238)))
