"""Decide how LLaVA-OneVision cuts an image ("anyres"), and how many tokens it becomes, from its size alone.

    (width, height) --AnyresConfig--> grid of tiles --unpad--> feature rows and columns --cap--> number of tokens

The image keeps its aspect ratio, is resized into the best grid of square tiles and padded with black; the base view
is the whole image squashed into one tile. After the vision tower the tiles' features are put together again, the
padding is cut off *there*, a map beyond the cap is shrunk, and every row of features ends with a learned newline.

Source: LLaVA-OneVision (arXiv 2408.03326) in the form of transformers' `LlavaOnevision`, whose arithmetic, rounding
to seven decimals included, is repeated operation by operation: a placeholder count must equal a feature count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from infinity_mm.errors import explain
from infinity_mm.vision.slicing import View

_SHRINK_ABOVE = 1.1
"""A feature map is left alone until its side exceeds the cap's by this factor."""


def square_grids(side: int) -> tuple[tuple[int, int], ...]:
    """Every grid from 1x1 to `side` x `side`, in the order of the released configurations; none for 0."""
    return tuple((columns, rows) for rows in range(1, side + 1) for columns in range(1, side + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyresConfig:
    """How one image becomes a base view plus tiles (LLaVA-OneVision)."""

    kind: ClassVar[Literal["anyres"]] = "anyres"
    """The way of cutting (see `plans.py`)."""

    tile_px: int = 384
    """Side of one tile and of the base view, in pixels."""
    patch_px: int = 14
    """Side of one ViT patch, in pixels; what `tile_px` exceeds the last whole patch by is never seen."""
    align_px: int | None = None
    """One token stands for one `align_px` square. None means `patch_px`."""
    grids: Sequence[tuple[int, int]] = square_grids(6)
    """(columns, rows) of tiles that an image may be cut into; of equally good ones the first is taken. Empty: an image
    is its base view alone."""
    max_tiles: int = 9
    """The stitched feature map is shrunk to about this many tiles' worth of tokens (`anyres_max_9`)."""

    def __post_init__(self) -> None:
        where = "AnyresConfig"
        if self.patch_px < 1 or self.cell_px < 1 or self.cell_px % self.patch_px:
            raise explain(
                what=f"align_px={self.align_px} is not a positive multiple of patch_px={self.patch_px}",
                where=where,
                fix="set align_px to patch_px times the connector's merge factor",
            )
        if self.tile_px < self.cell_px:
            raise explain(
                what=f"tile_px={self.tile_px} is smaller than one cell of {self.cell_px} px",
                where=where,
                fix="set tile_px to the vision tower's image_size, usually 384",
            )
        if any(len(grid) != 2 or min(grid) < 1 for grid in self.grids):
            raise explain(
                what=f"grids={list(self.grids)} names a grid without a tile",
                where=where,
                fix="list (columns, rows) pairs of at least 1x1",
            )
        if self.max_tiles < 1:
            raise explain(
                what=f"max_tiles={self.max_tiles} is below 1",
                where=where,
                fix="set max_tiles to 1 or more, usually 9",
            )

    @property
    def cell_px(self) -> int:
        """Side of the square that becomes one token, in pixels: `align_px`, or `patch_px` where that is None."""
        return self.patch_px if self.align_px is None else self.align_px

    @property
    def tile_cells(self) -> int:
        """Tokens along one side of a tile."""
        return self.tile_px // self.cell_px


@dataclass(frozen=True, kw_only=True)
class AnyresPlan:
    """What `plan_anyres` decided for one image; sizes are (width, height) in pixels, maps (columns, rows) of tokens."""

    kind: ClassVar[Literal["anyres"]] = "anyres"
    """The way of cutting (see `plans.py`)."""

    image_size: tuple[int, int]
    """The image's own size."""
    grid: tuple[int, int] | None
    """(columns, rows) of tiles; None for an image that has none: it is padded to a square and seen once."""
    resized_size: tuple[int, int]
    """The image's size inside the tiles, or inside the square, before padding."""
    unpadded: tuple[int, int]
    """The stitched map without padding; without tiles the one view's map."""
    shrunk: tuple[int, int]
    """The map the language model sees: `unpadded`, or smaller where that exceeds the cap."""
    tile_px: int
    """Side of one tile, in pixels."""
    patch_px: int
    """Side of one ViT patch, in pixels."""
    cell_px: int
    """Side of the square that becomes one token, in pixels."""

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The base view, then the tiles row by row; each is the part of its tile that the vision tower sees."""
        side = self.tile_px // self.cell_px * self.cell_px
        view = View(width_px=side, height_px=side, patch_px=self.patch_px, cell_px=self.cell_px)
        return (view,) * (1 + self.num_tiles)

    @property
    def num_tiles(self) -> int:
        """Tiles, the base view not counted."""
        return 0 if self.grid is None else self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Image tokens: the base view's, the map's and one newline for each of its rows."""
        columns, rows = self.shrunk
        if self.grid is None:
            return columns * rows + 1  # the released models end a single view with one newline
        return self.views[0].num_tokens + rows * (columns + 1)

    @property
    def num_patches(self) -> int:
        """Patches of all views, the vision tower's work."""
        return sum(view.num_patches for view in self.views)

    @property
    def view_shapes(self) -> list[tuple[int, int, int, int]]:
        """Of each view (rows, columns) in patches, and the image's width and height, from which the model stitches."""
        return [(rows, columns, *self.image_size) for columns, rows in (view.patches for view in self.views)]


def plan_anyres(width: int, height: int, config: AnyresConfig, *, alone: bool = True) -> AnyresPlan:
    """Plan the views of an image of `width` x `height` pixels.

    `alone` says that it is its sample's only image. Among others an image has one view, padded to a square: so were the
    released models trained. Raises UserError for a side below 1 px.
    """
    if width < 1 or height < 1:
        raise explain(
            what=f"an image of {width}x{height} px has no area",
            where="plan_anyres",
            fix="drop the image; both sides must be at least 1 px",
        )
    sizes = {"tile_px": config.tile_px, "patch_px": config.patch_px, "cell_px": config.cell_px}
    side = config.tile_cells
    if not alone or not config.grids:
        return AnyresPlan(
            image_size=(width, height), grid=None, resized_size=(width, height),
            unpadded=(side, side), shrunk=(side, side), **sizes,
        )  # fmt: skip
    columns, rows = _best_grid(width, height, config)
    unpadded = _unpadded(width, height, columns * side, rows * side)
    return AnyresPlan(
        image_size=(width, height), grid=(columns, rows),
        resized_size=_resized(width, height, columns * config.tile_px, rows * config.tile_px),
        unpadded=unpadded, shrunk=_shrunk(*unpadded, config.max_tiles * side**2), **sizes,
    )  # fmt: skip


def _best_grid(width: int, height: int, config: AnyresConfig) -> tuple[int, int]:
    """The grid that keeps most of the image's pixels; among those the one with the least unused area."""
    best, most, least_wasted = (1, 1), 0, math.inf
    for columns, rows in config.grids:
        wide, high = columns * config.tile_px, rows * config.tile_px
        scale = min(wide / width, high / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        wasted = wide * high - effective
        if effective > most or (effective == most and wasted < least_wasted):
            best, most, least_wasted = (columns, rows), effective, wasted
    return best


def _resized(width: int, height: int, wide: int, high: int) -> tuple[int, int]:
    """The image's size when it fills `wide` x `high` pixels as far as its aspect ratio allows."""
    scale_wide, scale_high = wide / width, high / height
    if scale_wide < scale_high:
        return wide, min(math.ceil(height * scale_wide), high)
    return min(math.ceil(width * scale_high), wide), high


def _unpadded(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """The map without its padding, which is cut in equal amounts on both sides: an odd row or column stays."""
    if width / height > columns / rows:
        filled = int(round(height * (columns / width), 7))
        return columns, rows - (rows - filled) // 2 * 2
    filled = int(round(width * (rows / height), 7))
    return columns - (columns - filled) // 2 * 2, rows


def _shrunk(columns: int, rows: int, max_tokens: int) -> tuple[int, int]:
    """The map within the cap, or as it is when it exceeds that by little."""
    ratio = math.sqrt(rows * columns / max_tokens)
    if ratio <= _SHRINK_ABOVE:
        return columns, rows
    return int(columns // ratio), int(rows // ratio)
