"""Image tags: the words by which an image is found, sorted, and given instruction types."""

from typing import Final

from infinity_mm.windtunnel.kinds.any_image import image_kind
from infinity_mm.windtunnel.scene import ChartFacts, Scene, ShapesFacts, TableFacts
from infinity_mm.windtunnel.words import COLOR_NAMES, SHAPES

VOCABULARY: Final[tuple[str, ...]] = (
    "shapes", "bar chart", "table", "sign", "form", "number", "word", *COLOR_NAMES, *SHAPES,
)  # fmt: skip
"""Every tag of the drawn world."""


def tags(scene: Scene) -> tuple[str, ...]:
    """The tags of a scene, in the order of `VOCABULARY`."""
    facts = scene.facts
    found = {image_kind(facts)}
    if isinstance(facts, ShapesFacts):
        found |= {thing.color for thing in facts.things} | {thing.shape for thing in facts.things}
    elif isinstance(facts, ChartFacts):
        found |= {"number", "word"} | {bar.color for bar in facts.bars}
    elif isinstance(facts, TableFacts):
        found |= {"number", "word"}
    else:
        has_number = any(line.value.isdigit() for line in facts.lines)
        found |= {
            "word",
            *(["number"] if has_number else []),
            *([facts.background] if facts.background else []),
        }
    return tuple(tag for tag in VOCABULARY if tag in found)
