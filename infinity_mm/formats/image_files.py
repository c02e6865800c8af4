"""Image files beside a JSON file: read below one folder and nowhere else, written under their own names.

name --image_path, no way out of the folder--> bytes --check--> Picture
Picture --own name, or one by content where that is taken--> images/name
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infinity_mm.formats.base import (
    MAX_IMAGE_BYTES,
    MAX_ROW_BYTES,
    Picture,
    check_picture,
    check_row_bytes,
    safe_name,
)
from infinity_mm.sources.base import read_uri
from infinity_mm.sources.json_rows import BadRow, image_path
from infinity_mm.synth.publish import image_ending
from infinity_mm.vision.images import BadImage

FOLDER = "images"
"""Where written image files lie, beside the JSON file."""


@dataclass(frozen=True)
class ImageFolder:
    """Images that rows name, below one folder."""

    root: str
    """Real, absolute path."""

    def load(self, names: list[str]) -> tuple[Picture, ...]:
        """The images, checked; raises `BadRow` for the first that cannot be used."""
        pictures: list[Picture] = []
        total = 0
        for name in names:
            path = image_path(name, self.root)
            total += os.path.getsize(path)
            if total > MAX_ROW_BYTES:
                raise BadRow("row_too_large", f"{total} bytes of images, limit {MAX_ROW_BYTES}")
            try:
                data = read_uri(path, max_bytes=MAX_IMAGE_BYTES)
            except BadImage as bad:
                raise BadRow(bad.reason, f"{name}: {bad.detail}"[:300]) from bad
            check_picture(data, name)
            pictures.append(Picture(safe_name(Path(path).relative_to(self.root).as_posix()), data))
        check_row_bytes(pictures)
        return tuple(pictures)


@dataclass(frozen=True)
class ImageFiles:
    """A folder `images` that pictures are written into; the same picture under the same name is written once."""

    folder: Path

    def put(self, picture: Picture) -> str:
        """Write the bytes and return the path relative to the folder that holds `images`."""
        by_content = f"{hashlib.sha256(picture.data).hexdigest()}.{image_ending(picture.data)}"
        short = by_content[:16] + by_content[64:]
        for name in (picture.name or short, by_content):
            if self._write(safe_name(name), picture.data):
                return str(PurePosixPath(FOLDER) / safe_name(name))
        raise BadRow("bad_image_path", f"{picture.name!r} cannot be written"[:200])

    def _write(self, name: str, data: bytes) -> bool:
        """False if the name cannot be had: other bytes, a folder in its place, too long for the disk."""
        file = self.folder / FOLDER / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "xb") as stream:
                stream.write(data)
        except FileExistsError:
            return file.is_file() and file.stat().st_size == len(data) and file.read_bytes() == data
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
                return False
            raise  # a full disk is no fact about the picture
        return True
