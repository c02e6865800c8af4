"""A strip of thumbnails for the card."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from infinity_mm.vision.images import decode_image

SIDE_PX = 192
"""Each picture fits into a square of this side."""
GAP_PX = 8


def strip(pictures: Sequence[bytes]) -> bytes:
    """WebP bytes: the pictures side by side on white, whole, the same bytes for the same pictures.

    Empty bytes, of a row without an image, leave their place white.
    """
    width = max(1, len(pictures)) * (SIDE_PX + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", (width, SIDE_PX), "white")
    for index, data in enumerate(pictures):
        if not data:
            continue
        picture = decode_image(data).convert("RGB")
        picture.thumbnail((SIDE_PX, SIDE_PX))
        left = index * (SIDE_PX + GAP_PX) + (SIDE_PX - picture.width) // 2
        sheet.paste(picture, (left, (SIDE_PX - picture.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=80, method=4)
    return buffer.getvalue()
