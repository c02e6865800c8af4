"""An upright picture to the patches of its views: the one way to pixels, in training, serving and measuring.

    RGB picture --cut_views--> the plan's views --to_patches--> 8-bit rows --normalise--> float32 rows

Resizing is `torch.nn.functional.interpolate` on 8-bit values (bicubic, antialiased), bit for bit. Pillow's own resize
is the same filter with finer weights: on photographs 0.5 % of values differ, by one or two levels. (Where one side
grows and the other shrinks, Pillow 13 may take the vertical pass first, and pure noise differs by more.)

Legend: H, W sides of a view, C channels (RGB, or RGB and a filler byte), P patches, F values in one patch.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from infinity_mm.errors import UserError, explain
from infinity_mm.vision.anyres import AnyresPlan
from infinity_mm.vision.plans import ImagePlan
from infinity_mm.vision.slicing import SlicePlan


def cut_views(
    image: Image.Image, plan: ImagePlan, mean: Sequence[float] = (0.5, 0.5, 0.5)
) -> list[UInt8[Tensor, "_ _ C"]]:
    """The plan's views of an RGB picture, (height, width, channels), in the plan's order.

    `mean` colours the sides of an `anyres` image that is padded to a square. Raises UserError when the plan is for
    another size.
    """
    if plan.kind == "anyres":
        return _cut_tiles(image, plan, mean)
    return _cut_slices(image, plan)


def _cut_slices(image: Image.Image, plan: SlicePlan) -> list[UInt8[Tensor, "_ _ C"]]:
    """Overview and slices.

    Slices are a regular crop of the whole picture resized to grid * slice size (LLaVA-UHD's July 2024 code), and
    share its memory. A plan with a padded canvas puts the picture at the top left on white.
    """
    canvas_HWC = pixels_of(_on_canvas(image, plan.canvas_size))
    overview = resize(canvas_HWC, plan.overview_size)
    if plan.grid is None or plan.slice_size is None:
        return [overview]
    (columns, rows), (width, height) = plan.grid, plan.slice_size
    sheet_HWC = resize(canvas_HWC, (columns * width, rows * height))
    slices = _pieces(sheet_HWC, plan.slice_size, plan.slice_size)
    return [overview, *slices] if plan.overview == "first" else [*slices, overview]


def _cut_tiles(image: Image.Image, plan: AnyresPlan, mean: Sequence[float]) -> list[UInt8[Tensor, "_ _ C"]]:
    """Base view and tiles: the picture squashed into one tile; then in its own aspect on black, cut into squares.

    An image among others is padded to a square in the mean colour and has this one view. A tile's last pixels, too
    few for a patch, are cut off.
    """
    if image.size != plan.image_size:
        raise _other_size(image, plan.image_size)
    tile, seen = (plan.tile_px, plan.tile_px), plan.views[0].size
    if plan.grid is None:
        return _pieces(resize(pixels_of(_on_square(image, mean)), tile), tile, seen)
    pixels_HWC = pixels_of(image)
    base = _pieces(resize(pixels_HWC, tile), tile, seen)
    wide, high = plan.grid[0] * plan.tile_px, plan.grid[1] * plan.tile_px
    width, height = plan.resized_size
    top, left = (high - height) // 2, (wide - width) // 2  # an odd pixel goes to the bottom and the right
    sheet_HWC = torch.zeros(high, wide, pixels_HWC.shape[2], dtype=torch.uint8)
    sheet_HWC[top : top + height, left : left + width] = resize(pixels_HWC, plan.resized_size)
    return [*base, *_pieces(sheet_HWC, tile, seen)]


def _pieces(
    sheet_HWC: UInt8[Tensor, "H W C"], step: tuple[int, int], size: tuple[int, int]
) -> list[UInt8[Tensor, "_ _ C"]]:
    """Pieces of `size` whose corners lie on a grid of `step`, row by row, in the sheet's memory."""
    return [
        sheet_HWC[top : top + size[1], left : left + size[0]]
        for top in range(0, sheet_HWC.shape[0], step[1])
        for left in range(0, sheet_HWC.shape[1], step[0])
    ]


def pixels_of(image: Image.Image) -> UInt8[Tensor, "H W C"]:
    """The pixels of an RGB picture, to be read only: Pillow's own memory where it is in one piece."""
    width, height = image.size
    try:
        flat = torch.from_dlpack(pa.array(image).values)
    except ValueError:  # above about 4 million pixels Pillow keeps a picture in several blocks
        return torch.from_numpy(np.array(image))
    return flat.view(height, width, 4)


def resize(pixels_HWC: UInt8[Tensor, "_ _ C"], size: tuple[int, int]) -> UInt8[Tensor, "_ _ C"]:
    """Pixels at another (width, height)."""
    # A batch of one in channels-last strides: torch then works on whole pixels with vector instructions, and neither
    # input nor output is copied. Made by any other order of unsqueeze and permute it is twice as slow.
    batch_1CHW = pixels_HWC.unsqueeze(0).permute(0, 3, 1, 2)
    resized = functional.interpolate(batch_1CHW, size=size[::-1], mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).squeeze(0)


def _on_canvas(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture itself, or on a white canvas where one side was padded."""
    if image.size == size:
        return image
    longer = (size[0] - image.width, size[1] - image.height)
    if min(longer) != 0:
        raise _other_size(image, size)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(image, (0, 0))
    return canvas


def _on_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The picture in the middle of a square in the mean colour."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _other_size(image: Image.Image, size: tuple[int, int]) -> UserError:
    return explain(
        what=f"the picture is {image.width}x{image.height} px, the plan is for {size[0]}x{size[1]} px",
        where="cut_views",
        fix="plan with the upright picture's own size: plan_image(*image.size, config)",
    )


def to_patches(views: Sequence[UInt8[Tensor, "_ _ C"]], patch_px: int) -> UInt8[Tensor, "P F"]:
    """Patches of all views, row by row, each flattened channel first: (rows * columns, 3 * patch_px^2) per view.

    Raises UserError when a side is no multiple of `patch_px`.
    """
    patches = []
    for view_HWC in views:
        height, width = view_HWC.shape[:2]
        if width % patch_px or height % patch_px:
            raise explain(
                what=f"a view of {width}x{height} px does not divide into patches of {patch_px} px",
                where="to_patches",
                fix="use views of a slice plan with the same patch_px",
            )
        tiles = view_HWC[..., :3].unflatten(1, (-1, patch_px)).unflatten(0, (-1, patch_px))
        patches.append(tiles.permute(0, 2, 4, 1, 3).reshape(-1, 3 * patch_px**2))
    return torch.cat(patches)


def normalise(
    patches_PF: UInt8[Tensor, "P F"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "P F"]:
    """`(x / 255 - mean) / std`, by channel."""
    values_per_channel = patches_PF.shape[1] // 3
    std_3 = torch.tensor(std, dtype=torch.float64)
    scale_F = (1 / (255 * std_3)).float().repeat_interleave(values_per_channel)
    shift_F = (torch.tensor(mean, dtype=torch.float64) / std_3).float().repeat_interleave(values_per_channel)
    return patches_PF.float().mul_(scale_F).sub_(shift_F)
