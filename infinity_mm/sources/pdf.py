"""PDF documents: pages rendered to pictures, windows of them as samples of several images.

file.pdf --page count--> windows 0-3, 3-6, ... --render at a dpi--> PNG pages, kept by the run
"""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

from infinity_mm.errors import need
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem, read_uri
from infinity_mm.sources.listing import Files
from infinity_mm.vision.images import MAX_PIXELS, BadImage

_POINTS_PER_INCH = 72
_PDFIUM = threading.Lock()
"""PDFium must not be called by two threads at once, whatever the document."""


@final
@dataclass(frozen=True, kw_only=True)
class PdfSource(FromTheWorld):
    """Documents below a folder; one item per window of pages."""

    name: str
    path: str
    """A PDF, a folder with some at any depth, or a pattern with `*`."""
    licence: str = "unknown"
    dpi: int = 144
    """Of the rendered pages: an A4 page has 1190 x 1684 px at 144."""
    window_pages: int = 1
    """Pages in one sample."""
    overlap_pages: int = 0
    """Pages that a window shares with the one before."""
    max_pages: int = 2000
    """A longer document is dropped."""
    _kept: dict[str, bytes] = field(default_factory=dict, init=False, compare=False)
    """The document that is being read: its windows are asked for one after the other."""

    def items(self) -> Iterator[SourceItem]:
        """Windows in order of the files' names; a document that cannot be opened is one item."""
        for name, url in self._files.list():
            try:
                with _opened(read_uri(url)) as document:
                    num_pages = len(document)
            except BadImage as bad:
                yield SourceItem(key=name, source=self.name, problem=bad.reason, detail=bad.detail)
                continue
            if not 1 <= num_pages <= self.max_pages:
                problem, detail = "too_many_pages" if num_pages else "no_pages", f"{num_pages} pages"
                yield SourceItem(key=name, source=self.name, problem=problem, detail=detail)
                continue
            for first, stop in windows(num_pages, self.window_pages, self.overlap_pages):
                yield SourceItem(key=f"{name}#pages={first}-{stop}", source=self.name)

    def read(self, item: SourceItem) -> Content:
        """Render the pages of a window."""
        name, _, pages = item.key.rpartition("#pages=")
        first, stop = map(int, pages.split("-"))
        if name not in self._kept:
            self._kept.clear()
            self._kept[name] = read_uri(self._files.url(name))
        with _opened(self._kept[name]) as document:
            pictures = tuple(
                Picture(data=_render(document, page, self.dpi), page=page) for page in range(first, stop)
            )
        return Content(pictures=pictures, licence=self.licence)

    @property
    def _files(self) -> Files:
        return Files(self.path, ".pdf")


def windows(num_pages: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of windows that cover all pages; the last one may be shorter, and none lies in another."""
    first = 0
    while first == 0 or first + overlap < num_pages:
        yield first, min(first + size, num_pages)
        first += size - overlap


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """A document, held alone; raises `BadImage` for one that cannot be opened."""
    try:
        pdfium: Any = importlib.import_module("pypdfium2")
    except ImportError as error:
        raise need("pypdfium2", extra="pdf", purpose="reading PDF documents") from error
    with _PDFIUM:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            locked = "password" in str(error).lower()
            raise BadImage("encrypted_pdf" if locked else "broken_pdf", f"{error}"[:200]) from error
        try:
            yield document
        finally:
            document.close()


def _render(document: Any, number: int, dpi: int) -> bytes:
    """One page as PNG, without colour where it has none; its size is checked before a pixel is drawn."""
    page = document[number]
    try:
        scale = dpi / _POINTS_PER_INCH
        width, height = (side * scale for side in page.get_size())
        if width * height > MAX_PIXELS:
            raise BadImage("too_many_pixels", f"page {number} is {width:.0f}x{height:.0f} px at {dpi} dpi")
        picture = page.render(scale=scale).to_pil().convert("RGB")
    finally:
        page.close()
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
