"""Everything people and the internet put into image folders and JSON files: each has a fate, and none stops the run."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from infinity_mm.record import Sample
from infinity_mm.runtime.ledger import Line
from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.sources.config import SourceConfig, open_sources
from infinity_mm.sources.read_pass import ReadConfig, ReadPass
from infinity_mm.sources.unique_pass import UniquePass

pytestmark = [
    pytest.mark.integration,
    # Pillow warns about what is wrong with metadata, and reads the pixels all the same.
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
]

KEPT = "kept"


def picture(seed: int, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """Noise: two pictures never have the same bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def frames(format: str, seed: int) -> bytes:
    more = [picture(seed + 1), picture(seed + 2)]
    return encoded(picture(seed), format, save_all=True, append_images=more, duration=100)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + png_chunk(b"IEND", b"")
    )


def png_with_text(seed: int, num_bytes: int) -> bytes:
    """Metadata that is small in the file and large in memory."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * num_bytes, zip=True)
    return encoded(picture(seed), "PNG", pnginfo=info)


def wrong_checksum(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 40
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(100 + orientation, (64, 40)), "JPEG", exif=exif)


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cyclic_tiff() -> bytes:
    """The directory of the first page names itself as the next page."""
    data = bytearray(encoded(picture(60), "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    return bytes(data)


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # broken off
    "truncated.jpg": (lambda: cut(encoded(picture(1), "JPEG")), "truncated"),
    "truncated.png": (lambda: cut(encoded(picture(2), "PNG")), "truncated"),
    "truncated.webp": (lambda: cut(encoded(picture(3), "WEBP")), "undecodable"),
    "truncated.gif": (lambda: cut(encoded(picture(4), "GIF")), "truncated"),
    "truncated.bmp": (lambda: cut(encoded(picture(5), "BMP")), "truncated"),
    "truncated.tif": (lambda: cut(encoded(picture(6), "TIFF")), "truncated"),
    "header_only.jpg": (lambda: encoded(picture(7), "JPEG")[:20], "not_an_image"),
    "no_bytes.jpg": (lambda: b"", "empty_file"),
    # not what the name says
    "really_png.jpg": (lambda: encoded(picture(8), "PNG"), KEPT),
    "no_suffix": (lambda: encoded(picture(9), "PNG"), KEPT),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not_an_image"),
    "drawing.png": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>',
        "not_an_image",
    ),
    "script.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n", "not_an_image"),
    "paper.png": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "not_an_image"),
    "archive.png": (lambda: b"PK\x03\x04" + bytes(60), "not_an_image"),
    "noise.png": (lambda: np.random.default_rng(0).bytes(5000), "not_an_image"),
    "drawing.svg": (lambda: b"<svg/>", "not_an_image"),
    "notes.txt": (lambda: b"some text", "not_an_image"),
    ".DS_Store": (lambda: b"\0\0\0\1Bud1", "hidden_file"),
    "Thumbs.db": (lambda: b"\xd0\xcf\x11\xe0", "not_an_image"),
    # sizes
    "one_pixel.png": (lambda: encoded(picture(10, (1, 1)), "PNG"), "too_small"),
    "ribbon.png": (lambda: encoded(picture(11, (30000, 2)), "PNG"), "extreme_aspect"),
    "claims_60000.png": (lambda: png_header(60000, 60000), "too_many_pixels"),
    "claims_0.png": (lambda: png_header(0, 40), "not_an_image"),
    "claims_more.png": (lambda: png_header(200, 200), "truncated"),
    "bomb.png": (lambda: encoded(Image.new("1", (20000, 20000)), "PNG"), "too_many_pixels"),
    # unusual but fine
    "cmyk.jpg": (lambda: encoded(picture(20, mode="CMYK"), "JPEG"), KEPT),
    "sixteen_bits.png": (
        lambda: encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
        KEPT,
    ),
    "one_bit.png": (lambda: encoded(picture(21, mode="1"), "PNG"), KEPT),
    "grey_alpha.png": (lambda: encoded(picture(22, mode="LA"), "PNG"), KEPT),
    "palette.png": (lambda: encoded(picture(23).quantize(16), "PNG", transparency=3), KEPT),
    "animated.gif": (lambda: frames("GIF", 24), KEPT),
    "animated.webp": (lambda: frames("WEBP", 27), KEPT),
    "animated.png": (lambda: frames("PNG", 30), KEPT),
    "pages.tif": (lambda: encoded(picture(33), "TIFF", save_all=True, append_images=[picture(34)]), KEPT),
    "float.tif": (lambda: encoded(picture(35, mode="L").convert("F"), "TIFF"), KEPT),
    "lossy.jp2": (lambda: encoded(picture(36), "JPEG2000"), KEPT),
    "UPPER.JPEG": (lambda: encoded(picture(37), "JPEG"), KEPT),
    # damaged inside
    "bad_profile.jpg": (
        lambda: encoded(picture(40), "JPEG", icc_profile=profile()[:50] + b"\xff" * 300),
        KEPT,
    ),
    "cyclic.tif": (cyclic_tiff, KEPT),
    "bad_checksum.png": (lambda: wrong_checksum(encoded(picture(41), "PNG")), "undecodable"),
    "huge_comment.png": (lambda: png_with_text(42, 80_000_000), "undecodable"),
    "rest_of_bytes.jpg": (lambda: encoded(picture(43), "JPEG") + b"\0" * 5000, KEPT),
    "bad_exif.jpg": (lambda: encoded(picture(44), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), KEPT),
    # names
    "two\nlines.jpg": (lambda: encoded(picture(50), "JPEG"), KEPT),
    "-rf.jpg": (lambda: encoded(picture(51), "JPEG"), KEPT),
    "\u202egnp.exe.jpg": (lambda: encoded(picture(52), "JPEG"), KEPT),
    "🦆 & <b>\"'.jpg": (lambda: encoded(picture(53), "JPEG"), KEPT),
    "x" * 246 + ".jpg": (lambda: encoded(picture(54), "JPEG"), KEPT),
    "a..%2f..%2fetc.jpg": (lambda: encoded(picture(55), "JPEG"), KEPT),
    "..jpg": (lambda: encoded(picture(58), "JPEG"), "hidden_file"),
    "\u2025\u2215etc.jpg": (lambda: encoded(picture(56), "JPEG"), KEPT),
    " .jpg": (lambda: encoded(picture(57), "JPEG"), KEPT),
} | {f"rotated_{n}.jpg": ((lambda n=n: rotated(n)), KEPT) for n in range(1, 9)}

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise."}]
QUESTION, ANSWER = TALK
ROW = {"image": "good.png", "conversations": TALK}
ROWS: dict[str, tuple[Any, str]] = {
    "fine": ({**ROW, "id": "fine"}, KEPT),
    "missing image": ({**ROW, "id": "a", "image": "nothing.png"}, "missing_image"),
    "absolute path": ({**ROW, "id": "b", "image": "/etc/hostname"}, "image_leaves_root"),
    "dots": ({**ROW, "id": "c", "image": "../images/page.jpg"}, "image_leaves_root"),
    "broken image": ({**ROW, "id": "d", "image": "broken.png"}, "truncated"),
    "null image": ({**ROW, "id": "e", "image": None}, "no_image"),
    "empty conversation": ({**ROW, "id": "f", "conversations": []}, "empty_conversation"),
    "conversation is no list": ({**ROW, "id": "g", "conversations": {"a": 1}}, "conversations_not_a_list"),
    "wrong roles": ({**ROW, "id": "h", "conversations": [ANSWER, QUESTION]}, "roles_do_not_alternate"),
    "unknown role": (
        {**ROW, "id": "i", "conversations": [{**QUESTION, "from": "x"}, ANSWER]},
        "unknown_role",
    ),
    "value is no text": (
        {**ROW, "id": "j", "conversations": [QUESTION, {**ANSWER, "value": [1]}]},
        "value_not_a_string",
    ),
    "two placeholders": (
        {**ROW, "id": "k", "conversations": [{**QUESTION, "value": "<image> <image> Same?"}, ANSWER]},
        "placeholder_mismatch",
    ),
    "no placeholder": (
        {**ROW, "id": "l", "conversations": [{**QUESTION, "value": "Well?"}, ANSWER]},
        "placeholder_mismatch",
    ),
    "duplicate id": ({**ROW, "id": "fine"}, "duplicate_id"),
    "nan id": ({**ROW, "id": float("nan")}, "bad_id"),
    "row is null": (None, "row_not_an_object"),
    "row is a list": ([1, 2], "row_not_an_object"),
    "lone surrogate": ({**ROW, "id": "m\udc80"}, "invalid_unicode"),
}
GOOD_LINE = json.dumps({**ROW, "id": "1"}).encode()
DOCUMENTS: dict[str, tuple[bytes, list[str]]] = {
    "cut.json": (b"[" + GOOD_LINE + b', {"id": "2", "ima', [KEPT, "invalid_json"]),
    "object.json": (b'{\n "rows": []\n}', ["not_a_list"]),
    "empty.json": (b"", ["empty_file"]),
    "deep.json": (b"[" * 200_000, ["invalid_json"]),
    "not_utf8.jsonl": (b'{"id": "\xff"}\n' + GOOD_LINE, ["invalid_unicode", KEPT]),
    "broken_line.jsonl": (b"{oops\n" + GOOD_LINE, ["invalid_json", KEPT]),
}


class Outcome:
    """One run over all of it."""

    def __init__(self, folder: Path) -> None:
        self.images, self.rows = folder / "images", folder / "rows"
        self.rows.mkdir(parents=True)
        self.images.mkdir()
        for name, (make, _) in FILES.items():
            (self.images / name).write_bytes(make())
        (folder / "outside.jpg").write_bytes(encoded(picture(70), "JPEG"))
        (self.images / "folder.jpg").mkdir()
        (self.images / "out.jpg").symlink_to(folder / "outside.jpg")
        (self.images / "loop.jpg").symlink_to(self.images / "loop.jpg")
        (self.images / "gone.jpg").symlink_to(self.images / "nothing.jpg")
        (self.images / "up").symlink_to(self.images)
        os.mkfifo(self.images / "pipe.jpg")
        locked = self.images / "locked.jpg"
        locked.write_bytes(encoded(picture(71), "JPEG"))
        locked.chmod(0)

        (self.rows / "good.png").write_bytes(encoded(picture(80), "PNG"))
        (self.rows / "broken.png").write_bytes(cut(encoded(picture(81), "PNG")))
        (self.rows / "rows.json").write_text(json.dumps([row for row, _ in ROWS.values()]))
        sources = [
            SourceConfig(kind="folder", name="images", path=str(self.images)),
            SourceConfig(kind="llava", name="rows", path=str(self.rows / "rows.json")),
        ]
        for name, (data, _) in DOCUMENTS.items():
            (self.rows / name).write_bytes(data)
            sources.append(SourceConfig(kind="llava", name=name, path=str(self.rows / name)))
        self.run = Run(str(folder / "run"))
        config = ReadConfig(sources=tuple(sources), images_per_unit=10)
        self.summary = run_passes([ReadPass(config=config), UniquePass()], self.run, LocalExecutor())
        self.items = {
            (item.source, item.key): item
            for source in open_sources(sources).values()
            for item in source.items()
        }
        self.lines: dict[str, list[Line]] = {}
        for line in self.run.ledger("read"):
            self.lines.setdefault(line.id, []).append(line)
        self.samples: dict[str, Sample] = {sample.id: sample for sample in self.run.samples("read")}

    def fate(self, source: str, key: str) -> str:
        """`kept`, or the reason why not."""
        (line,) = self.lines[self.items[source, key].id]
        assert line.fate in ("continued", "dropped")
        return KEPT if line.fate == "continued" else line.reason


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_kept_or_dropped_with_its_reason(outcome: Outcome, name: str) -> None:
    assert outcome.fate("images", name) == FILES[name][1]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("folder.jpg/", "is_a_folder"),
        ("out.jpg", "symlink_leaves_root"),
        ("loop.jpg", "symlink_loop"),
        ("gone.jpg", "broken_symlink"),
        ("up", "symlinked_folder"),
        ("pipe.jpg", "not_a_regular_file"),
    ],
)
def test_what_is_no_plain_file_is_listed_and_never_opened(outcome: Outcome, key: str, reason: str) -> None:
    assert outcome.fate("images", key) == reason


def test_a_file_without_read_permission_is_unreadable_unless_permissions_do_not_bind_us(
    outcome: Outcome,
) -> None:
    may_read = os.access(outcome.images / "locked.jpg", os.R_OK)
    assert outcome.fate("images", "locked.jpg") == (KEPT if may_read else "unreadable_file")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_image(outcome: Outcome, orientation: int) -> None:
    sample = outcome.samples[outcome.items["images", f"rotated_{orientation}.jpg"].id]
    size = (sample.images[0].width, sample.images[0].height)
    assert size == ((64, 40) if orientation <= 4 else (40, 64))


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_is_kept_or_dropped_with_its_reason(outcome: Outcome, number: int) -> None:
    name, (_, expected) = list(ROWS.items())[number]
    assert (name, outcome.fate("rows", f"{number:09d}")) == (name, expected)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_of_a_broken_document_the_good_rows_are_kept(outcome: Outcome, name: str) -> None:
    expected = DOCUMENTS[name][1]
    assert [outcome.fate(name, f"{number:09d}") for number in range(len(expected))] == expected


def test_every_directory_entry_has_exactly_one_fate(outcome: Outcome) -> None:
    entries = {
        entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
        for entry in os.scandir(outcome.images)
    }
    listed = {key for source, key in outcome.items if source == "images"}
    assert entries == listed
    assert len(outcome.lines) == len(outcome.items)
    assert all(len(lines) == 1 for lines in outcome.lines.values())


def test_the_sums_agree_and_every_drop_has_a_row_with_its_reason(outcome: Outcome) -> None:
    read, unique = (summary.totals for summary in outcome.summary.passes)
    assert read["in"] == len(outcome.items) == read["out"] + read["dropped"]
    assert read["quarantined"] == 0
    assert unique["in"] == read["out"] == unique["expanded"] + unique["merged"]
    rows = Counter(row["reason"] for row in outcome.run.dropped("read"))
    assert rows == Counter(line.reason for (line,) in outcome.lines.values() if line.fate == "dropped")
    assert all(row["key"] and row["source"] for row in outcome.run.dropped("read"))


def test_what_is_kept_can_be_read_again(outcome: Outcome) -> None:
    for sample in outcome.run.samples("unique"):
        assert outcome.run.images.read(sample.images[0])
