"""The `sources` section of a configuration, and the readers it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from infinity_mm.errors import UserError, explain
from infinity_mm.sources.base import Source
from infinity_mm.sources.file_list import FileListSource
from infinity_mm.sources.folder import FolderSource
from infinity_mm.sources.llava import LlavaSource
from infinity_mm.sources.windtunnel import WindTunnelSource


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One place that images come from."""

    kind: Literal["folder", "files", "llava", "windtunnel"]
    name: str | None = None
    """Unique in the run; part of every item's id, so renaming a source renames its items. Default: the kind."""
    path: str | None = None
    """folder: the root; files: a text file whose lines are JSON strings, each the absolute path of an image; llava: the
    JSON or JSONL file. An absolute path; for a folder also a URL."""
    image_root: str | None = None
    """llava: what `image` is relative to; default is the folder of the JSON file."""
    use_conversations: bool = True
    """llava: False takes only the images."""
    licence: str | None = None
    """SPDX name or the source's own words; default `unknown`, or CC0-1.0 for drawn images."""
    world_seed: int = 0
    """windtunnel: number of the drawn world."""
    num_images: int | None = None
    """windtunnel: how many scenes."""
    split: Literal["train", "held_out"] = "train"
    """windtunnel: which side of the world."""

    def __post_init__(self) -> None:
        if self.kind == "windtunnel":
            if not self.num_images or self.num_images < 1 or self.path is not None:
                raise self._wrong(
                    "a wind-tunnel source is drawn", "set num_images to 1 or more and leave out path"
                )
            return
        if self.path is None or self.num_images is not None:
            raise self._wrong(f"a {self.kind} source is read", "set path and leave out num_images")
        for key, value in (("path", self.path), ("image_root", self.image_root)):
            if (
                value is not None
                and not os.path.isabs(value)
                and not (self.kind == "folder" and "://" in value)
            ):
                # A submitted Ray job runs in a temporary copy of the working directory.
                raise self._wrong(f"{key} `{value}` is relative", f"write {key}={os.path.abspath(value)}")

    def _wrong(self, what: str, fix: str) -> UserError:
        return explain(what=what, where=f"sources, kind {self.kind} (configuration)", fix=fix)


def open_source(config: SourceConfig) -> Source:
    """The reader that a configuration names."""
    name, licence = config.name or config.kind, config.licence or "unknown"
    match config.kind:
        case "folder":
            assert config.path is not None
            return FolderSource(name=name, root=config.path, licence=licence)
        case "files":
            assert config.path is not None
            return FileListSource(name=name, path=config.path, licence=licence)
        case "llava":
            assert config.path is not None
            return LlavaSource(
                name=name,
                path=config.path,
                image_root=config.image_root or os.path.dirname(config.path),
                licence=licence,
                use_conversations=config.use_conversations,
            )
        case "windtunnel":
            assert config.num_images is not None
            return WindTunnelSource(
                name=name,
                world_seed=config.world_seed,
                num_images=config.num_images,
                split=config.split,
                licence=config.licence or "CC0-1.0",
            )
        case other:
            assert_never(other)


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
