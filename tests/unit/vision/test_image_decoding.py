"""Decoding of untrusted bytes to upright RGB."""

import io
import pickle
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infinity_mm.vision.images import NOTE, BadImage, decode_image, upright_rgb

RED, GREEN = (255, 0, 0), (0, 255, 0)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_for(data: bytes, **limits: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode_image(data, **limits)
    return caught.value.reason


def colours(image: Image.Image) -> list[list[tuple[int, int, int]]]:
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises a size and which holds almost no data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_exif_rotation_is_applied() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    decoded = decode_image(encoded(picture, "PNG", exif=exif))
    assert colours(decoded) == [[RED], [GREEN]]
    assert decoded.getexif() == {}


def test_alpha_is_laid_over_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    assert colours(decode_image(encoded(picture, "PNG"))) == [[RED, (255, 255, 255)]]


def test_grey_with_alpha_is_laid_over_white() -> None:
    assert colours(decode_image(encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"))) == [[(255, 255, 255)]]


def test_palette_with_a_transparent_entry_is_laid_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    assert colours(decode_image(encoded(picture, "PNG", transparency=1))) == [[RED, (255, 255, 255)]]


def test_cmyk_becomes_rgb() -> None:
    (pixel,) = colours(
        decode_image(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG", quality=100))
    )[0]
    assert pixel[0] > 240
    assert max(pixel[1:]) < 15


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert [pixel[0] for pixel in colours(decoded)[0]] == [0, 1, 128, 255]


def test_sixteen_bit_tiff_of_another_byte_order_is_scaled() -> None:
    values = np.array([[0, 65535]], dtype=">u2")
    decoded = decode_image(encoded(Image.frombytes("I;16B", (2, 1), values.tobytes()), "TIFF"))
    assert [pixel[0] for pixel in colours(decoded)[0]] == [0, 255]


def test_float_values_between_zero_and_one_fill_the_range() -> None:
    picture = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert [pixel[0] for pixel in colours(upright_rgb(picture))[0]] == [0, 128, 255]


def test_values_beyond_sixteen_bits_are_stretched() -> None:
    picture = Image.fromarray(np.array([[-100_000, 0, 100_000]], dtype=np.int32))
    assert [pixel[0] for pixel in colours(upright_rgb(picture))[0]] == [0, 128, 255]


def test_animation_gives_its_first_frame_and_a_note() -> None:
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), GREEN)]
    decoded = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((0, 0)) == RED
    assert decoded.info[NOTE] == "first of 2 frames"


def test_a_still_picture_has_no_note() -> None:
    assert NOTE not in decode_image(encoded(Image.new("RGB", (4, 4)), "GIF")).info


def test_empty_file_is_bad() -> None:
    assert reason_for(b"") == "empty_file"


@pytest.mark.parametrize("data", [b"hello", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"])
def test_bytes_of_no_raster_format_are_not_an_image(data: bytes) -> None:
    assert reason_for(data) == "not_an_image"


def test_truncated_jpeg_is_bad() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    assert reason_for(data[: len(data) // 2]) == "truncated"


def test_truncated_png_is_bad() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    assert reason_for(data[: len(data) // 2]) in ("truncated", "undecodable")


def test_bomb_is_refused_from_its_header() -> None:
    assert reason_for(png_claiming(12_000, 12_000)) == "too_many_pixels"
    assert reason_for(png_claiming(60_000, 60_000)) == "too_many_pixels"


def test_pixel_limit_is_inclusive() -> None:
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert decode_image(data, max_pixels=100).size == (10, 10)
    assert reason_for(data, max_pixels=99) == "too_many_pixels"


def test_small_pictures_are_refused_on_request() -> None:
    data = encoded(Image.new("RGB", (10, 3)), "PNG")
    assert reason_for(data, min_side_px=4) == "too_small"


def test_bad_image_survives_pickling() -> None:
    error = BadImage("too_many_pixels", "9x9 px: limit 3")
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.detail) == ("too_many_pixels", "9x9 px: limit 3")
    assert str(again) == str(error)
    assert pickle.loads(pickle.dumps(BadImage("empty_file"))).detail == ""


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200),
    prefix=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]),
)
def test_hostile_bytes_give_a_picture_or_a_bad_image(data: bytes, prefix: bytes) -> None:
    # Any other exception fails the test.
    with suppress(BadImage):
        assert decode_image(prefix + data).mode == "RGB"


def test_an_upright_rgb_picture_is_not_copied() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    assert upright_rgb(picture) is picture


def test_metadata_is_dropped_and_the_callers_picture_keeps_it() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.info["comment"] = "from a camera"
    assert upright_rgb(picture).info == {}
    assert picture.info == {"comment": "from a camera"}


def test_a_rotation_that_was_set_in_memory_is_applied_to_a_copy() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.getexif()[0x0112] = 6
    assert upright_rgb(picture).size == (1, 2)
    assert picture.size == (2, 1)
