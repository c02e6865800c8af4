"""Grounding: answers that are a box or a point, and questions about a box; checked, and kept from 0 to 1.

    {"bbox_2d": [120, 80, 340, 160]} --units of the teacher--> inside? ordered? large? --> <|region 0 0.12 0.08 ...|>
                                                                \\--> dropped with a reason

The marker stands in question or answer until a conversation is made; there it is a `Region`, which every model family
writes its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infinity_mm.data.regions import find_numbers, region_marker
from infinity_mm.errors import explain
from infinity_mm.record import ImageRef, Region
from infinity_mm.synth.exchange import Rejected

STYLES = {"box": 4, "point": 2}
"""Answer styles -> how many numbers one is."""


@dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """How the teacher's boxes are read."""

    units: Literal["thousandths", "pixels", "percent", "fractions"] = "thousandths"
    """What the teacher counts in: thousandths of the sides (Qwen3-VL, InternVL), pixels of the picture as it is sent
    (Qwen2.5-VL, where the server does not shrink it), percent (Molmo) or fractions (LLaVA-OneVision)."""
    min_side: float = 0.005
    """Least width and height of a box, as a share of the image's."""

    def __post_init__(self) -> None:
        if not 0 < self.min_side < 1:
            raise explain(
                what=f"min_side={self.min_side} is not a share of a side",
                where="GroundingConfig (YAML section `grounding`)",
                fix="set grounding.min_side between 0 and 1, usually 0.005",
            )


def read_region(
    text: str, count: int, images: Sequence[ImageRef], config: GroundingConfig
) -> Region | Rejected:
    """The one box (`count` 4) or point (2) in a text about one image; of several nobody said which it is in."""
    if len(images) != 1:
        return Rejected(reason="region_of_several_images")
    found = find_numbers(text, count)
    if len(found) != 1:
        return Rejected(reason="several_regions" if found else "no_region")
    return _checked(found[0][0], images[0], config)


def mark_box(text: str, images: Sequence[ImageRef], config: GroundingConfig) -> str | Rejected:
    """The text with the marker of its one box in place of the numbers."""
    region = read_region(text, 4, images, config)
    if isinstance(region, Rejected):
        return region
    ((_, (start, end)),) = find_numbers(text, 4)
    return text[:start] + region_marker(region) + text[end:]


def _checked(numbers: tuple[float, ...], image: ImageRef, config: GroundingConfig) -> Region | Rejected:
    sides = {
        "thousandths": (1000, 1000),
        "pixels": (image.width, image.height),
        "percent": (100, 100),
        "fractions": (1, 1),
    }[config.units]
    coords = tuple(number / side for number, side in zip(numbers, sides * 2))
    if not all(0 <= value <= 1 for value in coords):
        return Rejected(reason="region_outside")
    if len(coords) == 4:
        width, height = coords[2] - coords[0], coords[3] - coords[1]
        if width < 0 or height < 0:
            return Rejected(reason="region_order")
        if min(width, height) < config.min_side:
            return Rejected(reason="region_too_small")
    return Region(0, tuple(round(value, 6) for value in coords))
