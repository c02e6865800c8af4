from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from source_data import read_in, reasons

from infinity_mm.errors import UserError
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.pdf import PdfSource, windows


def pdf(num_pages: int, size: tuple[int, int] = (72, 144)) -> bytes:
    """Pages of one colour each, one inch wide and two high."""
    pages = [Image.new("RGB", size, (40 * n, 90, 200)) for n in range(num_pages)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:], resolution=72)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("num_pages", "size", "overlap", "expected"),
    [
        (1, 1, 0, [(0, 1)]),
        (3, 1, 0, [(0, 1), (1, 2), (2, 3)]),
        (1, 4, 1, [(0, 1)]),
        (4, 4, 1, [(0, 4)]),
        (5, 4, 1, [(0, 4), (3, 5)]),
        (7, 4, 1, [(0, 4), (3, 7)]),
        (8, 4, 0, [(0, 4), (4, 8)]),
        (5, 3, 2, [(0, 3), (1, 4), (2, 5)]),
    ],
)
def test_windows_cover_all_pages_and_none_lies_in_another(
    num_pages: int, size: int, overlap: int, expected: list[tuple[int, int]]
) -> None:
    assert list(windows(num_pages, size, overlap)) == expected


def test_windows_of_pages_become_samples_of_several_images(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.pdf").write_bytes(pdf(5))
    (tmp_path / "docs" / "b.pdf").write_bytes(pdf(1))
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    config = SourceConfig(kind="pdf", path=str(tmp_path / "docs"), dpi=96, window_pages=4, overlap_pages=1)
    run = read_in(tmp_path, config)
    pages = sorted([image.page for image in sample.images] for sample in run.samples("unique"))
    assert pages == [[0], [0, 1, 2, 3], [3, 4]]
    assert {(i.width, i.height) for s in run.samples("unique") for i in s.images} == {(96, 192)}
    assert reasons(run) == {"broken.pdf": "broken_pdf"}
    long = next(sample for sample in run.samples("unique") if len(sample.images) == 4)
    picture = Image.open(io.BytesIO(run.images.read(long.images[1])))
    assert picture.getpixel((50, 50)) == pytest.approx((40, 90, 200), abs=3)
    assert config.images_per_sample == 4


def test_a_page_that_would_be_a_flood_of_pixels_is_never_drawn(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(pdf(1, (2000, 2000)))
    config = SourceConfig(kind="pdf", path=str(tmp_path / "a.pdf"), dpi=600)
    assert list(reasons(read_in(tmp_path, config)).values()) == ["too_many_pixels"]


def test_a_document_with_too_many_pages_is_one_item(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "long.pdf").write_bytes(pdf(3))
    items = list(PdfSource(name="p", path=str(tmp_path), max_pages=2).items())
    assert [(item.problem, item.detail) for item in items] == [("too_many_pages", "3 pages")]


def test_without_the_renderer_the_install_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(1))
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(UserError, match=r"pip install 'infinity-mm\[pdf\]'"):
        list(PdfSource(name="p", path=str(tmp_path)).items())
