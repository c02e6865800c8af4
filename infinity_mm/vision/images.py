"""Image bytes to an upright RGB picture.

    bytes --header checked--> size allowed --decode--> picture --upright_rgb--> 8-bit RGB, nothing else in it

Images are untrusted: only plain raster formats are opened, and the size is read from the header and checked before
any pixel is decoded.
"""

import io
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

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
    image = _open(io.BytesIO(data))
    width, height = _checked_size(image, max_pixels)
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


def image_size(image: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture that `decode_image` would give, from the header; or raises BadImage."""
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        if not file.read(1):
            raise BadImage("empty_file")
        file.seek(0)
        picture = _open(file)
        width, height = _checked_size(picture, max_pixels)
        try:
            # Pillow decodes a whole PNG to find out that it has no EXIF data.
            has_exif = picture.format != "PNG" or _EXIF_KEYS & picture.info.keys() or _late_exif(file)
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1) if has_exif else 1
            if isinstance(picture, TiffImagePlugin.TiffImageFile):
                # Some versions of Pillow have turned its size already.
                width, height = (int(picture.tag_v2[tag]) for tag in (_TIFF_WIDTH, _TIFF_HEIGHT))
        except Exception as error:  # damaged EXIF data raises whatever its parser raises
            raise BadImage("undecodable", f"{type(error).__name__}: {error}") from error
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_EXIF_KEYS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}


def _late_exif(png: BinaryIO) -> bool:
    """Whether a PNG has an `eXIf` chunk anywhere; only the heads of chunks are read."""
    place = 8  # after the signature
    while True:
        png.seek(place)
        head = png.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return False
        if head[4:] == b"eXIf":
            return True
        place += 12 + int.from_bytes(head[:4], "big")


def _checked_size(image: Image.Image, max_pixels: int) -> tuple[int, int]:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("too_many_pixels", f"{width}x{height} px, limit {max_pixels}")
    return width, height


def _open(file: BinaryIO) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(file, formats=_supported_formats())
    except UnidentifiedImageError as error:
        num_bytes = file.seek(0, io.SEEK_END)
        raise BadImage("not_an_image", f"{num_bytes} bytes in no known format") from error
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
    """Any loaded picture as 8-bit RGB with its EXIF rotation applied and its metadata dropped; itself if it is one."""
    exif = image.getexif()
    if type(image) is Image.Image and image.mode == "RGB" and not exif and not image.info:
        return image
    if exif.get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose copies a picture that is upright already
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
