"""Decide, from an image's size alone, which views of it the vision tower sees and how many tokens they cost.

    (width, height) --SliceConfig--> grid, cell and overview size --> views, patch grids, number of tokens

The planner is pure: no image, no tensor. Collator, trainer, server, token statistics and cost estimates all
call `plan_slices`, so they agree by construction.

Source: LLaVA-UHD (arXiv 2403.11703), section 3.1, in the variant that MiniCPM-V and the July 2024 rewrite of
LLaVA-UHD share. Against the paper: the image is split only when its area exceeds the budget, candidates never
exceed the cap, and a 1x1 grid is never chosen.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from infinity_mm.errors import explain

Rounding = Literal["floor", "round"]
Overview = Literal["first", "last"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AspectGuard:
    """What happens to an image so long and thin that the one-patch minimum would break the patch budget."""

    max_aspect: float = 60.0
    """Largest allowed ratio of the long to the short side."""
    action: Literal["refuse", "pad"] = "refuse"
    """`refuse` raises; `pad` plans for a canvas whose short side is enlarged until the ratio is allowed."""

    def __post_init__(self) -> None:
        if self.max_aspect < 1:
            raise explain(
                what=f"max_aspect={self.max_aspect} is below 1, which no image satisfies",
                where="AspectGuard",
                fix="set max_aspect to 1 or more, usually 60",
            )
        if self.action not in ("refuse", "pad"):
            raise explain(
                what=f"action={self.action!r} is not known",
                where="AspectGuard",
                fix="use 'refuse' or 'pad'",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceConfig:
    """How one image becomes slices plus an overview (LLaVA-UHD, section 3.1)."""

    kind: ClassVar[Literal["uhd"]] = "uhd"
    """The way of cutting (see `plans.py`)."""

    scale_px: int
    """Side of the square whose area one view may have, in pixels; need not be a multiple of `align_px`."""
    max_slices: int
    """Most slices one image is cut into, the overview not counted; 0 or 1 means never sliced."""
    patch_px: int = 14
    """Side of one ViT patch, in pixels."""
    rounding: Rounding = "floor"
    """How view sides become multiples of `align_px`: `floor` never exceeds the budget, `round` (half to even)
    may."""
    align_px: int | None = None
    """Sides of views are multiples of this, in pixels; one token stands for one `align_px` square. None means
    `patch_px`; a connector that merges 2x2 patches needs `2 * patch_px`."""
    view_tokens: int | None = None
    """Tokens of every view, for a connector with a fixed number of queries; None: one a cell."""
    aspect_guard: AspectGuard | None = AspectGuard()
    """Limit on the aspect ratio; None plans any size as the reference does."""
    overview: Overview = "first"
    """Where the overview stands: before the slices (MiniCPM-V) or after them (LLaVA-UHD's July 2024 code)."""

    def __post_init__(self) -> None:
        where = "SliceConfig"
        if self.patch_px < 1:
            raise explain(
                what=f"patch_px={self.patch_px} is not positive", where=where, fix="set it to 14 or 16"
            )
        if self.cell_px < 1 or self.cell_px % self.patch_px:
            raise explain(
                what=f"align_px={self.align_px} is not a positive multiple of patch_px={self.patch_px}",
                where=where,
                fix="set align_px to patch_px times the connector's merge factor",
            )
        if self.scale_px < self.cell_px:
            raise explain(
                what=f"scale_px={self.scale_px} is smaller than one cell of {self.cell_px} px",
                where=where,
                fix=f"set scale_px to at least {self.cell_px}, usually 336 to 448",
            )
        if self.max_slices < 0:
            raise explain(
                what=f"max_slices={self.max_slices} is negative",
                where=where,
                fix="set max_slices to 0 (never slice) or more, usually 6 or 9",
            )
        if self.view_tokens is not None and self.view_tokens < 1:
            raise explain(
                what=f"view_tokens={self.view_tokens} is not positive",
                where=where,
                fix="set it to the connector's number of queries, or to None",
            )
        if self.rounding not in ("floor", "round"):
            raise explain(
                what=f"rounding={self.rounding!r} is unknown", where=where, fix="use 'floor' or 'round'"
            )
        if self.overview not in ("first", "last"):
            raise explain(
                what=f"overview={self.overview!r} is unknown", where=where, fix="use 'first' or 'last'"
            )

    @property
    def cell_px(self) -> int:
        """What view sides are multiples of, in pixels: `align_px`, or `patch_px` where that is None."""
        return self.patch_px if self.align_px is None else self.align_px


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One picture the vision tower sees: the overview or a slice."""

    width_px: int
    """Width in pixels, a multiple of `cell_px`."""
    height_px: int
    """Height in pixels, a multiple of `cell_px`."""
    patch_px: int
    """Side of one ViT patch, in pixels."""
    cell_px: int
    """What sides are multiples of, in pixels; the square that becomes one token where `view_tokens` is None."""
    view_tokens: int | None = None
    """Tokens of the view whatever its size; None: one a cell."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width_px, self.height_px

    @property
    def cells(self) -> tuple[int, int]:
        """(columns, rows) in units of `cell_px`."""
        return self.width_px // self.cell_px, self.height_px // self.cell_px

    @property
    def patches(self) -> tuple[int, int]:
        """(columns, rows) in units of `patch_px`: the grid the vision tower computes on."""
        return self.width_px // self.patch_px, self.height_px // self.patch_px

    @property
    def num_tokens(self) -> int:
        """Tokens this view becomes after the connector, markers not counted."""
        columns, rows = self.cells
        return columns * rows if self.view_tokens is None else self.view_tokens

    @property
    def num_patches(self) -> int:
        """Patches the vision tower computes."""
        columns, rows = self.patches
        return columns * rows


@dataclass(frozen=True, kw_only=True)
class SlicePlan:
    """What `plan_slices` decided for one image size; all sizes are (width, height) in pixels."""

    kind: ClassVar[Literal["uhd"]] = "uhd"
    """The way of cutting (see `plans.py`)."""

    canvas_size: tuple[int, int]
    """Size of the image after padding; the image's own size unless an aspect guard pads."""
    grid: tuple[int, int] | None
    """(columns, rows) of slices; None when the image is not sliced."""
    slice_size: tuple[int, int] | None
    """Size of every slice; None when the image is not sliced."""
    overview_size: tuple[int, int]
    """Size of the overview."""
    patch_px: int
    """Side of one ViT patch, in pixels."""
    cell_px: int
    """What view sides are multiples of, in pixels."""
    view_tokens: int | None = None
    """Tokens of every view; None: one a cell."""
    overview: Overview = "first"
    """Whether the overview comes before or after the slices."""

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The slices row by row, with the overview before or after them."""
        sizes = [self.overview_size]
        if self.grid is not None and self.slice_size is not None:
            columns, rows = self.grid
            slices = [self.slice_size] * (columns * rows)
            sizes = [*sizes, *slices] if self.overview == "first" else [*slices, *sizes]
        return tuple(
            View(
                width_px=width,
                height_px=height,
                patch_px=self.patch_px,
                cell_px=self.cell_px,
                view_tokens=self.view_tokens,
            )
            for width, height in sizes
        )

    @property
    def num_slices(self) -> int:
        """Slices, the overview not counted."""
        return len(self.views) - 1

    @property
    def num_tokens(self) -> int:
        """Image tokens of all views, markers not counted."""
        return sum(view.num_tokens for view in self.views)

    @property
    def num_patches(self) -> int:
        """Patches of all views, the vision tower's work."""
        return sum(view.num_patches for view in self.views)

    @property
    def view_shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each view in patches, the order that tensors use."""
        return [(rows, columns) for columns, rows in (view.patches for view in self.views)]


def plan_slices(width: int, height: int, config: SliceConfig) -> SlicePlan:
    """Plan the views of an image of `width` x `height` pixels.

    Raises UserError for a side below 1 px, and for an aspect ratio that the guard refuses.
    """
    if width < 1 or height < 1:
        raise explain(
            what=f"an image of {width}x{height} px has no area",
            where="plan_slices",
            fix="drop the image; both sides must be at least 1 px",
        )
    width, height = _guarded(width, height, config.aspect_guard)
    scale, cell = config.scale_px, config.cell_px
    num_slices = min(math.ceil(width * height / (scale * scale)), config.max_slices)
    if num_slices <= 1:
        overview = _fit(width, height, config, upscale=True)
        return SlicePlan(
            canvas_size=(width, height), grid=None, slice_size=None, overview_size=overview,
            patch_px=config.patch_px, cell_px=cell, view_tokens=config.view_tokens, overview=config.overview,
        )  # fmt: skip
    columns, rows = _best_grid(width, height, num_slices, config.max_slices)
    slice_size = _fit(
        _to_multiple(width, columns, config.rounding) // columns,
        _to_multiple(height, rows, config.rounding) // rows,
        config,
        upscale=True,
    )
    return SlicePlan(
        canvas_size=(width, height), grid=(columns, rows), slice_size=slice_size,
        overview_size=_fit(width, height, config, upscale=False), patch_px=config.patch_px, cell_px=cell,
        view_tokens=config.view_tokens, overview=config.overview,
    )  # fmt: skip


def area_used(plan: SlicePlan, config: SliceConfig) -> float:
    """Share of the views' area budget that alignment leaves: their pixels over the budget of as many full views."""
    used = sum(view.width_px * view.height_px for view in plan.views)
    return used / (len(plan.views) * config.scale_px**2)


def aspect_error(plan: SlicePlan) -> float:
    """Factor by which alignment stretches the worst view against the part of the image it shows; 1 is exact."""
    width, height = plan.canvas_size
    columns, rows = plan.grid or (1, 1)
    parts = [(plan.overview_size, width / height)]
    if plan.slice_size is not None:
        parts.append((plan.slice_size, width / columns / (height / rows)))
    return max(math.exp(abs(math.log(size[0] / size[1] / aspect))) for size, aspect in parts)


def _guarded(width: int, height: int, guard: AspectGuard | None) -> tuple[int, int]:
    """The canvas to plan for: the image's size, or with its short side padded."""
    if guard is None or max(width, height) <= guard.max_aspect * min(width, height):
        return width, height
    if guard.action == "refuse":
        raise explain(
            what=f"an image of {width}x{height} px is longer than {guard.max_aspect:g} times its short side",
            where="plan_slices (aspect_guard)",
            fix="drop or crop the image, raise max_aspect, or set action='pad'",
        )
    short = math.ceil(max(width, height) / guard.max_aspect)
    return (width, short) if width > height else (short, height)


def _best_grid(width: int, height: int, num_slices: int, max_slices: int) -> tuple[int, int]:
    """(columns, rows) whose ratio is nearest to the image's on a log scale; the first of equals wins.

    Square images tie exactly or in the last bit of a double, so the order and the arithmetic are part of the
    contract; the golden tests freeze both.
    """
    log_ratio = math.log(width / height)
    best, smallest = (1, 1), math.inf
    for columns, rows in _candidate_grids(num_slices, max_slices):
        error = abs(log_ratio - math.log(columns / rows))
        if error < smallest:
            best, smallest = (columns, rows), error
    return best


def _candidate_grids(num_slices: int, max_slices: int) -> Iterator[tuple[int, int]]:
    """All (columns, rows) with one slice fewer, as many, or one more; fewer first, few columns first."""
    for count in (num_slices - 1, num_slices, num_slices + 1):
        if count == 1 or count > max_slices:
            continue
        for columns in range(1, count + 1):
            if count % columns == 0:
                yield columns, count // columns


def _fit(width: int, height: int, config: SliceConfig, *, upscale: bool) -> tuple[int, int]:
    """The aligned size that keeps the aspect ratio within the area budget; smaller ones grow only if `upscale`."""
    scale = config.scale_px
    if upscale or width * height > scale * scale:
        ratio = width / height
        height = int(scale / math.sqrt(ratio))
        width = int(height * ratio)
    return (
        _to_multiple(width, config.cell_px, config.rounding),
        _to_multiple(height, config.cell_px, config.rounding),
    )


def _to_multiple(length: int, unit: int, rounding: Rounding) -> int:
    """`length` as a multiple of `unit`, at least one."""
    count = math.floor(length / unit) if rounding == "floor" else round(length / unit)
    return max(count * unit, unit)
