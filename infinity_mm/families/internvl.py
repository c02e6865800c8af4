"""InternVL in transformers' own format: the grid of square tiles nearest in shape, and the whole image.

A row of `pixel_values` is a tile, which attends to itself alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor

from infinity_mm.data.regions import Notation
from infinity_mm.families.base import Limits, Parts
from infinity_mm.families.stock import ImagePlan, StockFamily, tile_tower, tiles
from infinity_mm.model.flops import ModelSizes, VisionSizes, text_sizes


@final
class InternVL(StockFamily):
    """InternVL 2.5, 3 and 3.5 as transformers' `internvl`."""

    model_type = "internvl"
    parts: Parts = {  # noqa: RUF012
        "vision_tower": ("model.vision_tower.",),
        "connector": ("model.multi_modal_projector.",),
        "language_model": ("model.language_model.", "lm_head."),
    }
    notation = Notation(box="<box>[[{}, {}, {}, {}]]</box>", point="<point>[[{}, {}]]</point>", grid=1000)

    def plan(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[ImagePlan]:
        """The processor cuts images into tiles unless told otherwise."""
        return [self._plan(processor, *size) for size in sizes]

    def _plan(self, processor: Any, width: int, height: int) -> ImagePlan:
        num_tiles = processor.image_processor.get_number_of_image_patches(
            height, width, {"crop_to_patches": True}
        )
        return ImagePlan(
            text=processor.replace_image_token({"num_patches": [num_tiles]}, 0),
            views=((1, 1),) * num_tiles,
            frame=(width, height),
        )

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> Tensor:
        """Tiles, the whole image last."""
        cut = processor.image_processor(images=list(images), crop_to_patches=True, return_tensors="pt")
        return cut["pixel_values"].flatten(1)

    def inputs(self, config: Any, pixel_values: Tensor, view_shapes: Tensor) -> dict[str, Any]:
        """Tiles."""
        return {"pixel_values": tiles(pixel_values)}

    def vision_sizes(self, config: Any) -> VisionSizes:
        """A tile has a class token beside its patches."""
        return tile_tower(config.vision_config, class_tokens=1)

    def sizes(self, config: Any) -> ModelSizes:
        """Patches merged into squares, then two matrices."""
        text = config.text_config
        return ModelSizes(
            vision=self.vision_sizes(config),
            merge=round(1 / config.downsample_ratio),
            connector_hidden=text.hidden_size,
            **text_sizes(text),
        )

    def blank(self, config: Any) -> tuple[Tensor, Tensor]:
        """One grey tile."""
        return torch.zeros(1, 3 * math.prod(config.vision_config.image_size)), torch.tensor([[0, 1, 1]])

    def limit(self, model: Any, processor: Any, limits: Limits) -> None:
        """Tiles of one image."""
        limits.only(self.model_type, "max_slices")
        if limits.max_slices is not None:
            processor.image_processor.max_patches = max(1, limits.max_slices)


INTERNVL = InternVL()
