"""Prompt tokens of an image, by the published rule of a model family where there is one here.

(model name, width, height) --> tokens, the rule that was used
"""

from __future__ import annotations

import math

_PX_PER_TOKEN = {"qwen3-vl": 32, "qwen2.5-vl": 28, "qwen2-vl": 28}
"""Side of the square that becomes one token."""
_ASSUMED_PX = 28
"""For a model that is not known here."""
_MOST = 16384
_TILE_PX = 448
_TILE_TOKENS = 256
_MOST_TILES = 12


def image_tokens(model: str, width: int, height: int, *, longest_px: int | None = None) -> tuple[int, str]:
    """How many, and by which rule; `longest_px` is the longest side that is sent."""
    if longest_px is not None and max(width, height) > longest_px:
        shrink = longest_px / max(width, height)
        width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
    lower = model.lower()
    if "internvl" in lower:
        return _tiles(width, height), f"internvl, {_TILE_TOKENS} tokens per tile of {_TILE_PX} px"
    for family, side_px in _PX_PER_TOKEN.items():
        if family in lower:
            return _squares(width, height, side_px), f"{family}, a token per {side_px}x{side_px} px"
    return _squares(width, height, _ASSUMED_PX), f"assumed, a token per {_ASSUMED_PX}x{_ASSUMED_PX} px"


def _squares(width: int, height: int, side_px: int) -> int:
    return min(_MOST, max(4, round(width / side_px) * round(height / side_px)))


def _tiles(width: int, height: int) -> int:
    """The grid of at most twelve tiles nearest in shape (the larger one where the image fills it), and an overview."""
    ratio = width / height
    grids = [
        (columns, rows)
        for columns in range(1, _MOST_TILES + 1)
        for rows in range(1, _MOST_TILES + 1)
        if columns * rows <= _MOST_TILES
    ]
    best = min(abs(ratio - columns / rows) for columns, rows in grids)
    near = [grid for grid in grids if math.isclose(abs(ratio - grid[0] / grid[1]), best)]
    near.sort(key=lambda grid: grid[0] * grid[1])
    filled = [grid for grid in near if width * height > 0.5 * _TILE_PX**2 * grid[0] * grid[1]]
    number = (filled[-1] if filled else near[0])[0] * (filled[-1] if filled else near[0])[1]
    return _TILE_TOKENS * (number + (number > 1))
