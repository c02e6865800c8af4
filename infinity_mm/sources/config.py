"""The `sources` section of a configuration, and the readers it names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infinity_mm.errors import UserError, explain
from infinity_mm.sources.base import Source
from infinity_mm.sources.coco import CocoSource
from infinity_mm.sources.fetch import Limits
from infinity_mm.sources.file_list import FileListSource
from infinity_mm.sources.folder import FolderSource
from infinity_mm.sources.llava import LlavaSource
from infinity_mm.sources.parquet import ParquetSource
from infinity_mm.sources.pdf import PdfSource
from infinity_mm.sources.tars import InfinityMMSource, WebDatasetSource
from infinity_mm.sources.urls import UrlSource
from infinity_mm.sources.windtunnel import WindTunnelSource


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One place that images come from. A key that its kind does not use is refused."""

    kind: Literal[
        "folder",
        "files",
        "llava",
        "coco",
        "parquet",
        "webdataset",
        "infinity_mm",
        "urls",
        "pdf",
        "windtunnel",
    ]
    name: str | None = None
    """Unique in the run; part of every item's id, so renaming a source renames its items. Default: the kind."""
    path: str | None = None
    """Where it lies; an absolute path, or a URL where the kind reads one (folder, parquet, webdataset, infinity_mm,
    urls, pdf).
    files: a text file whose lines are JSON strings, each the absolute path of an image; llava, coco: the JSON file;
    parquet, webdataset, infinity_mm, pdf: a file, a folder, or a pattern with `*`; urls: a text file or Parquet."""
    licence: str | None = None
    """SPDX name or the source's own words; default `unknown`, or CC0-1.0 for drawn images. What a row says of itself
    goes first."""
    use_conversations: bool = True
    """llava, coco, webdataset, infinity_mm: False takes only the images."""
    pattern: str | None = None
    """folder: which relative paths are taken, as in `**/*.jpg`."""
    image_root: str | None = None
    """llava, coco: what image names are relative to; default is the folder of the JSON file."""
    image_column: str | None = None
    """parquet: bytes, structs of bytes and path, or a list of them; default `image` or `images`."""
    id_column: str | None = None
    """parquet: what rows are known by; default file and row number."""
    caption_column: str | None = None
    """parquet: a text, or a list of them, that comes with the image as its conversation."""
    conversation_column: str | None = None
    """parquet: messages of role and content, or of `from` and `value`, that come with the image."""
    licence_column: str | None = None
    """parquet: the row's own licence."""
    max_images: int = 1
    """parquet: most images of one row; rows with more are dropped."""
    url_column: str = "url"
    """urls: the column of a Parquet file."""
    allow_network: bool = False
    """urls: must be true. Nothing else here goes to places that data name."""
    max_bytes: int = 32 << 20
    """urls: largest body."""
    timeout_s: float = 30.0
    """urls: for one try of one download, redirects included."""
    content_types: tuple[str, ...] = ("image/",)
    """urls: beginnings of the content types that are taken."""
    dpi: int = 144
    """pdf: of the rendered pages."""
    window_pages: int = 1
    """pdf: pages in one sample."""
    overlap_pages: int = 0
    """pdf: pages that a window shares with the one before."""
    world_seed: int = 0
    """windtunnel: number of the drawn world."""
    num_images: int | None = None
    """windtunnel: how many scenes."""
    split: Literal["train", "held_out"] = "train"
    """windtunnel: which side of the world."""

    def __post_init__(self) -> None:
        self._check_keys()
        if self.kind == "windtunnel":
            if not self.num_images or self.num_images < 1:
                raise self._wrong("a wind-tunnel source is drawn", "set num_images to 1 or more")
            return
        if self.path is None:
            raise self._wrong(f"a {self.kind} source is read", "set path")
        for key, value in (("path", self.path), ("image_root", self.image_root)):
            may_be_url = key == "path" and self.kind not in ("files", "llava", "coco")
            if value is not None and not os.path.isabs(value) and not (may_be_url and "://" in value):
                # A submitted Ray job runs in a temporary copy of the working directory.
                raise self._wrong(f"{key} `{value}` is relative", f"write {key}={os.path.abspath(value)}")
        if self.kind == "urls" and not self.allow_network:
            raise self._wrong("it would fetch what a list of links names", "set allow_network: true")
        if not 0 <= self.overlap_pages < self.window_pages:
            raise self._wrong(
                f"window_pages={self.window_pages}, overlap_pages={self.overlap_pages}",
                "set window_pages to 1 or more and overlap_pages below it",
            )
        if min(self.max_images, self.max_bytes, self.timeout_s, self.dpi) < 1 or not self.content_types:
            raise self._wrong(
                "max_images, max_bytes, timeout_s, dpi and content_types leave nothing",
                "set each to 1 or more",
            )

    @property
    def images_per_sample(self) -> int:
        """Most images that one of its samples has."""
        return {"pdf": self.window_pages, "parquet": self.max_images}.get(self.kind, 1)

    def _check_keys(self) -> None:
        known = {"kind", "name", "licence", *_KEYS[self.kind]}
        for field in dataclasses.fields(self):
            if field.name not in known and getattr(self, field.name) != field.default:
                raise self._wrong(
                    f"a {self.kind} source has no `{field.name}`", f"its keys: {', '.join(sorted(known))}"
                )

    def _wrong(self, what: str, fix: str) -> UserError:
        return explain(what=what, where=f"sources, kind {self.kind} (configuration)", fix=fix)


_COLUMNS = ("image_column", "id_column", "caption_column", "conversation_column", "licence_column")
_LIMITS = ("max_bytes", "timeout_s", "content_types")
_KEYS: dict[str, tuple[str, ...]] = {
    "folder": ("path", "pattern"),
    "files": ("path",),
    "llava": ("path", "image_root", "use_conversations"),
    "coco": ("path", "image_root", "use_conversations"),
    "parquet": ("path", *_COLUMNS, "max_images"),
    "webdataset": ("path", "use_conversations"),
    "infinity_mm": ("path", "use_conversations"),
    "urls": ("path", "url_column", "allow_network", *_LIMITS),
    "pdf": ("path", "dpi", "window_pages", "overlap_pages"),
    "windtunnel": ("world_seed", "num_images", "split"),
}
"""Kind -> the keys that it uses besides kind, name and licence."""
_READERS: dict[str, Callable[..., Source]] = {
    "files": FileListSource,
    "llava": LlavaSource,
    "coco": CocoSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
    "infinity_mm": InfinityMMSource,
    "pdf": PdfSource,
    "windtunnel": WindTunnelSource,
}
"""Kinds whose reader takes the keys as they are."""


def open_source(config: SourceConfig) -> Source:
    """The reader that a configuration names."""
    options: dict[str, Any] = {key: getattr(config, key) for key in _KEYS[config.kind]}
    options["name"] = config.name or config.kind
    if config.licence is not None:
        options["licence"] = config.licence
    if config.kind == "folder":
        return FolderSource(root=options.pop("path"), **options)
    if config.kind == "urls":
        limits = Limits(**{key: options.pop(key) for key in _LIMITS})
        return UrlSource(
            name=options["name"],
            path=options["path"],
            url_column=options["url_column"],
            licence=config.licence or "unknown",
            limits=limits,
        )
    if "image_root" in options and config.image_root is None:
        options["image_root"] = os.path.dirname(options["path"])
    return _READERS[config.kind](**options)


def open_sources(configs: Sequence[SourceConfig]) -> dict[str, Source]:
    """All readers by name, in order of configuration."""
    sources: dict[str, Source] = {}
    for config in configs:
        source = open_source(config)
        if source.name in sources:
            raise explain(
                what=f"two sources are called `{source.name}`",
                where="sources (configuration)",
                fix="give each a `name`; it is part of the ids of its items",
            )
        sources[source.name] = source
    if not sources:
        raise explain(what="there are no sources", where="sources (configuration)", fix="add at least one")
    return sources
