"""Thumbnails for a page: each picture once, small, and within a budget; what is left out is counted by reason.

image references --read, decode, shrink, WebP--> base64, until the budget is spent
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import final

from PIL import Image

from infinity_mm.engines.base import ImageReader
from infinity_mm.record import ImageRef
from infinity_mm.vision.images import BadImage, decode_image

OVER_BUDGET = "left_out_for_size"
"""Reason for a picture that would have made the page too large."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One picture as it stands on the page."""

    webp: str
    """Base64."""
    width: int
    height: int


@final
@dataclass(kw_only=True)
class Thumbnails:
    """Makes thumbnails until `max_bytes` of base64 are spent."""

    images: ImageReader
    px: int
    """Longest side."""
    max_bytes: int
    num_bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> pictures that are not on the page."""

    def make(self, image: ImageRef) -> Thumbnail | str:
        """The thumbnail, or the reason why there is none."""
        found = self._make(image)
        if isinstance(found, str):
            self.left_out[found] += 1
        else:
            self.num_bytes += len(found.webp)
        return found

    def _make(self, image: ImageRef) -> Thumbnail | str:
        if self.num_bytes >= self.max_bytes:
            return OVER_BUDGET
        try:
            # `read` has decoded it once, so the run's own limit on pixels was met.
            picture = decode_image(self.images.read(image), max_pixels=image.width * image.height)
        except BadImage as bad:
            return bad.reason
        picture.thumbnail((self.px, self.px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="WEBP", quality=72, method=4)
        webp = base64.b64encode(buffer.getvalue()).decode()
        if self.num_bytes + len(webp) > self.max_bytes:
            return OVER_BUDGET
        return Thumbnail(webp=webp, width=picture.width, height=picture.height)
