"""Image bytes to an upright RGB picture, and a picture to its views and patches.

    bytes --header checked, decoded--> upright RGB --cut_views--> overview, slices --to_patches--> float32 rows

Images are untrusted: only plain raster formats are opened, and the size is read from the header and checked before
any pixel is decoded.
"""

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from infinity_mm.errors import UserError, explain
from infinity_mm.vision.anyres import AnyresPlan
from infinity_mm.vision.plans import ImagePlan
from infinity_mm.vision.slicing import SlicePlan

MAX_PIXELS = 89_478_485
"""Default limit on width * height: a quarter of 1 GiB in RGB, also Pillow's warning threshold."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is opened at all (JPEG covers MPO, which phones write). Left out on purpose: EPS (starts another
program), TGA (takes any bytes for an image), ICO (its header does not bound the size of what it holds)."""
NOTE = "infinity_mm_note"
"""Key in `Image.info` where a decoded picture says what was left out of it."""

_SHORT = ("truncated", "incomplete", "premature", "end of file")
"""Words by which decoders say that bytes are missing."""


class BadImage(ValueError):  # noqa: N818 (a fact about the image, not a programming error)
    """An image that cannot be used; carries one string, `reason: detail`, so it survives pickling."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)

    @property
    def reason(self) -> str:
        """A short word to count by: empty_file, not_an_image, too_many_pixels, too_small, truncated, undecodable."""
        return str(self.args[0]).partition(": ")[0]

    @property
    def detail(self) -> str:
        """What exactly was wrong, for a person."""
        return str(self.args[0]).partition(": ")[2]


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side_px: int = 1) -> Image.Image:
    """Decode image bytes to an upright 8-bit RGB picture, or raise BadImage.

    Alpha is laid over white, 16-bit values are scaled to 8 bits, an animation gives its first frame and a note in
    `image.info[NOTE]`. `max_pixels` bounds width * height as the header states them.
    """
    if not data:
        raise BadImage("empty_file")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("too_many_pixels", f"{width}x{height} px, limit {max_pixels}")
    if min(width, height) < min_side_px:
        raise BadImage("too_small", f"{width}x{height} px, each side needs {min_side_px}")
    try:
        num_frames = (
            1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        )  # MPO: a photo and its thumbnail
        image.load()
        picture = upright_rgb(image)
    except Exception as error:  # decoders raise anything on hostile bytes; every such file has the same fate
        is_short = any(word in str(error).lower() for word in _SHORT)
        raise BadImage(
            "truncated" if is_short else "undecodable", f"{type(error).__name__}: {error}"
        ) from error
    if num_frames > 1:
        picture.info[NOTE] = f"first of {num_frames} frames"
    return picture


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=_supported_formats())
    except UnidentifiedImageError as error:
        raise BadImage("not_an_image", f"{len(data)} bytes in no known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_many_pixels", str(error)) from error
    except Exception as error:  # a damaged header raises whatever its parser raises
        raise BadImage("undecodable", f"{type(error).__name__}: {error}") from error


@cache
def _supported_formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow can open; it registers its plugins lazily."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any loaded picture as 8-bit RGB with its EXIF rotation applied and its metadata dropped."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    picture = image.convert("RGB")
    picture.info = {}
    return picture


def _eight_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits as 0 to 255.

    Integers are taken as 16 bits wide, floats as 0 to 1 or 0 to 255; what exceeds that is stretched from its
    smallest to its largest value.
    """
    wide = np.nan_to_num(values.astype(np.float64))
    low, high = float(wide.min()), float(wide.max())
    bottom, top = 0.0, 65535.0
    if mode == "F":
        top = 1.0 if high <= 1 else 255.0
    if low < bottom or high > top:
        bottom, top = low, high
    scaled = (wide - bottom) * (255 / max(top - bottom, 1e-9))
    return scaled.round().astype(np.uint8)


def cut_views(
    image: Image.Image, plan: ImagePlan, mean: Sequence[float] = (0.5, 0.5, 0.5)
) -> list[Image.Image]:
    """The plan's views of an RGB picture, in their order, all bicubic; `mean` colours the sides of a padded square.

    Raises UserError when the plan is for another size.
    """
    if isinstance(plan, AnyresPlan):
        return _cut_tiles(image, plan, mean)
    return _cut_slices(image, plan)


def _cut_slices(image: Image.Image, plan: SlicePlan) -> list[Image.Image]:
    """Overview and slices.

    Slices are a regular crop of the whole picture resized to grid * slice size (LLaVA-UHD's July 2024 code). A plan
    with a padded canvas puts the picture at the top left on white.
    """
    canvas = _on_canvas(image, plan.canvas_size)
    overview = canvas.resize(plan.overview_size, Image.Resampling.BICUBIC)
    if plan.grid is None or plan.slice_size is None:
        return [overview]
    (columns, rows), (width, height) = plan.grid, plan.slice_size
    sheet = canvas.resize((columns * width, rows * height), Image.Resampling.BICUBIC)
    slices = _regular_crop(sheet, plan.slice_size, plan.slice_size)
    return [overview, *slices] if plan.overview == "first" else [*slices, overview]


def _cut_tiles(image: Image.Image, plan: AnyresPlan, mean: Sequence[float]) -> list[Image.Image]:
    """Base view and tiles: the picture squashed into one tile, then in its own aspect on black, cut into squares.

    An image among others is padded to a square in the mean colour and has this one view. A tile's last pixels, too
    few for a patch, are cut off.
    """
    if image.size != plan.image_size:
        raise _other_size(image, plan.image_size)
    seen, tile = plan.views[0].size, (plan.tile_px, plan.tile_px)
    if plan.grid is None:
        side = max(image.size)
        color = tuple(int(255 * value) for value in mean)
        image = _centred(image, (side, side), color)
    base = image.resize(tile, Image.Resampling.BICUBIC).crop((0, 0, *seen))
    if plan.grid is None:
        return [base]
    sheet_size = (plan.grid[0] * plan.tile_px, plan.grid[1] * plan.tile_px)
    sheet = _centred(image.resize(plan.resized_size, Image.Resampling.BICUBIC), sheet_size, (0, 0, 0))
    return [base, *_regular_crop(sheet, tile, seen)]


def _regular_crop(sheet: Image.Image, step: tuple[int, int], size: tuple[int, int]) -> list[Image.Image]:
    """Pieces of `size` whose corners lie on a grid of `step`, row by row."""
    return [
        sheet.crop((left, top, left + size[0], top + size[1]))
        for top in range(0, sheet.height, step[1])
        for left in range(0, sheet.width, step[0])
    ]


def _centred(image: Image.Image, size: tuple[int, int], color: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a canvas; the odd pixel goes to the right and the bottom."""
    canvas = Image.new("RGB", size, color)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


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


def _other_size(image: Image.Image, size: tuple[int, int]) -> UserError:
    return explain(
        what=f"the picture is {image.width}x{image.height} px, the plan is for {size[0]}x{size[1]} px",
        where="cut_views",
        fix="plan with the upright picture's own size: plan_image(*image.size, config)",
    )


def to_patches(
    view: Image.Image, patch_px: int, mean: Sequence[float], std: Sequence[float]
) -> Float32[np.ndarray, "patches values"]:
    """Patches of an RGB view, row by row, each flattened channel first, normalised as `(x / 255 - mean) / std`.

    Shape (rows * columns, 3 * patch_px^2). Raises UserError when a side is no multiple of `patch_px`.
    """
    if view.width % patch_px or view.height % patch_px:
        raise explain(
            what=f"a view of {view.width}x{view.height} px does not divide into patches of {patch_px} px",
            where="to_patches",
            fix="use views of a slice plan with the same patch_px",
        )
    rows, columns = view.height // patch_px, view.width // patch_px
    scale = (1 / (255 * np.asarray(std, dtype=np.float64))).astype(np.float32)
    shift = (np.asarray(mean, dtype=np.float64) / np.asarray(std, dtype=np.float64)).astype(np.float32)
    pixels = np.asarray(view.convert("RGB"), dtype=np.float32) * scale - shift
    tiles = pixels.reshape(rows, patch_px, columns, patch_px, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(rows * columns, 3 * patch_px * patch_px))
