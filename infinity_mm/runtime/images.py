"""Image bytes by reference: from where they lie, or from the run's own store, and always the bytes that were meant."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import final

from infinity_mm.record import ImageRef
from infinity_mm.storage import files


@final
@dataclass(frozen=True)
class RunImages:
    """The `ImageReader` of a run; small and picklable."""

    folder: str
    """The content-addressed store: `<folder>/ab/<sha256>`, for images that have no file of their own."""

    def read(self, image: ImageRef) -> bytes:
        """Return the encoded bytes; raises `BadImage` when they are missing or changed."""
        # Here, because it loads Pillow and friends, and not every worker reads images.
        from infinity_mm.vision.images import BadImage

        problem = BadImage("missing_image", f"no file at {image.uri}")
        # The store too: what lies in the run directory is named from there, and the run may have moved.
        urls = [self._url(image.sha256)]
        if self.is_elsewhere(image):
            urls.insert(0, image.uri)
        for url in urls:
            try:
                whole, span = files.split_span(url)
                data = files.read(url) if span is None else files.read_span(whole, *span)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    problem = BadImage("unreadable_image", f"{url}: {error}")
                continue
            if hashlib.sha256(data).hexdigest() == image.sha256:
                return data
            problem = BadImage("changed_image", f"{url} is not the file that was read first")
        raise problem

    def is_elsewhere(self, image: ImageRef) -> bool:
        """Whether the image has a place of its own, outside of every run."""
        return "://" in image.uri or os.path.isabs(image.uri)

    def store(self, data: bytes) -> str:
        """Keep image bytes and return where in the run directory: a shard names no path of this machine."""
        sha256 = hashlib.sha256(data).hexdigest()
        url = self._url(sha256)
        if not files.exists(url):
            files.write(url, data)
        return files.join(self.folder.rpartition("/")[2], sha256[:2], sha256)

    def _url(self, sha256: str) -> str:
        return files.join(self.folder, sha256[:2], sha256)
