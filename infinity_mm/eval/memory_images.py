"""Images held in memory for an engine, and the grey ones of the blind control."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field

from PIL import Image

from infinity_mm.engines.base import ImageReader
from infinity_mm.record import ImageRef

BLANK_GREY = 128
"""The blind control's color; mid-grey is zero after normalisation."""


@dataclass(kw_only=True)
class MemoryImages(ImageReader):
    """Images held in memory, by hash."""

    data: dict[str, bytes] = field(default_factory=dict)

    def add(self, encoded: bytes, width: int, height: int) -> ImageRef:
        """Keep the bytes and return a reference to them."""
        sha256 = hashlib.sha256(encoded).hexdigest()
        self.data[sha256] = encoded
        return ImageRef(sha256=sha256, uri=f"memory:{sha256}", width=width, height=height, source="memory")

    def read(self, image: ImageRef) -> bytes:
        """The bytes behind a reference made by `add`."""
        return self.data[image.sha256]

    def add_picture(self, picture: Image.Image) -> ImageRef:
        """Keep a decoded picture, without loss."""
        buffer = io.BytesIO()
        picture.save(
            buffer, format="PNG", compress_level=1
        )  # read once and forgotten: speed matters, size little
        return self.add(buffer.getvalue(), *picture.size)


def blank_like(picture: Image.Image) -> Image.Image:
    """Grey of the same size."""
    return Image.new("RGB", picture.size, (BLANK_GREY,) * 3)
