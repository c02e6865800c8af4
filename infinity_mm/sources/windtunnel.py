"""Drawn images whose truth is known; the truth never enters a sample.

(world_seed, split, index) --sample_scene--> scene --render--> PNG bytes
                                                 \\--truth--> a file for evaluation only
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from infinity_mm.sources.base import Content, Picture, SourceItem
from infinity_mm.windtunnel import world
from infinity_mm.windtunnel.scene import Scene


@final
@dataclass(frozen=True, kw_only=True)
class WindTunnelSource:
    """Scenes 0 to `num_images - 1` of one split of a drawn world."""

    name: str
    world_seed: int
    num_images: int
    split: Literal["train", "held_out"]
    licence: str = "CC0-1.0"
    threads = 1

    def items(self) -> Iterator[SourceItem]:
        """One item per scene; nothing is drawn yet."""
        for index in range(self.num_images):
            yield SourceItem(key=f"{index:09d}", source=self.name)

    def read(self, item: SourceItem) -> Content:
        """Draw the scene."""
        return Content(pictures=(Picture(data=world.png_bytes(self.scene(item))),), licence=self.licence)

    def truth(self, item: SourceItem) -> Mapping[str, Any] | None:
        """The scene graph."""
        return json.loads(self.scene(item).to_json())

    def scene(self, item: SourceItem) -> Scene:
        """The scene behind an item."""
        return world.sample_scene(world_seed=self.world_seed, index=int(item.key), split=self.split)
