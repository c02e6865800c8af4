"""What planning needs to know of one sample: sizes and lengths, not words and pixels.

source, index --outline--> texts, image sizes --tokenise--> Measured

Image sizes are kept as they are, so that a change of slicing or resolution needs no new measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from infinity_mm.data.conversation import ConversationSource
from infinity_mm.data.encode import RowEncoder
from infinity_mm.errors import UserError
from infinity_mm.sources.json_rows import BadRow
from infinity_mm.vision.images import BadImage

BAD_SAMPLE = (BadImage, BadRow, UserError)
"""What a reader or the encoder raises about one sample; anything else is trouble with the machine or the code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One sample in numbers."""

    id: str
    """The sample's own id; `#index` where it could not be read."""
    domain: str
    """As the source says."""
    tokens: tuple[int, ...]
    """Positions beside images: before all exchanges, then of each exchange. Empty when there is none."""
    images: tuple[int, ...]
    """How many images stand there."""
    image_sizes: tuple[tuple[int, int], ...]
    """(width, height) of the upright images, in order."""
    problem: str | None = None
    """Why the sample cannot be used at all."""


def measure(source: ConversationSource, index: int, encoder: RowEncoder) -> Measured:
    """Read and measure one sample; what is wrong with it becomes its `problem`."""
    id_, domain = f"#{index}", "default"
    try:
        outline = source.outline(index)
        id_, domain, problem = outline.id, outline.domain, outline.problem
        if outline.messages and problem is None:
            cost = encoder.measure(outline, source.turns)
            return Measured(
                id=id_, domain=domain, tokens=cost.tokens, images=cost.images, image_sizes=outline.image_sizes
            )
    except BAD_SAMPLE as error:
        problem = one_line(error)
    return Measured(id=id_, domain=domain, tokens=(), images=(), image_sizes=(), problem=problem)


def one_line(error: Exception) -> str:
    """What was wrong, for a list."""
    if isinstance(error, BadRow):
        return f"{error.reason}: {error.detail}"
    return str(error).partition("\n")[0]
