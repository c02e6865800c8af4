"""Sizes from headers are those of the decoded pictures."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infinity_mm.vision.images import BadImage, decode_image, image_size

ORIENTATION = 0x0112


def encoded(kind: str, orientation: int | None = None) -> bytes:
    picture = Image.fromarray(np.zeros((7, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({} if orientation is None else {"exif": exif}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
def test_the_size_is_that_of_the_upright_picture(kind: str, orientation: int | None, tmp_path: Path) -> None:
    data = encoded(kind, orientation if kind in ("JPEG", "PNG", "WEBP", "TIFF") else None)
    (tmp_path / "file").write_bytes(data)
    assert image_size(data) == image_size(tmp_path / "file") == decode_image(data).size


def test_exif_data_after_the_pixels_of_a_png_count() -> None:
    data = encoded("PNG", 6)
    head = data.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", data[head : head + 4])
    chunk = data[head : head + 12 + length]
    assert zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0]
    without, end = data[:head] + data[head + len(chunk) :], len(data) - len(chunk) - 12
    moved = without[:end] + chunk + without[end:]
    assert image_size(moved) == decode_image(moved).size == (7, 12)


def test_pixels_are_not_looked_at() -> None:
    data = encoded("PNG")
    start = data.index(b"IDAT") + 4
    spoiled = data[:start] + bytes(8) + data[start + 8 :]
    assert image_size(spoiled) == (12, 7)
    with pytest.raises(BadImage):
        decode_image(spoiled)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty_file"), (b"GIF", "not_an_image"), (encoded("PNG"), "too_many_pixels")]
)
def test_what_cannot_be_opened_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as found:
        image_size(data, max_pixels=50)
    assert found.value.reason == reason
