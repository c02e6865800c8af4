"""Idefics3 and SmolVLM, which began as one: an image becomes a grid of square tiles and itself once more as a whole.

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
class SmolVLM(StockFamily):
    """One of the two; they differ in their classes only."""

    parts: Parts = {  # noqa: RUF012
        "vision_tower": ("model.vision_model.",),
        "connector": ("model.connector.",),
        "language_model": ("model.text_model.", "lm_head."),
    }
    notation = Notation(box="[{}, {}, {}, {}]", point="[{}, {}]", grid=1000)

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def plan(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[ImagePlan]:
        """Rows and columns as the image processor counts them; 0 of each where an image is not cut."""
        return [self._plan(processor, *size) for size in sizes]

    def _plan(self, processor: Any, width: int, height: int) -> ImagePlan:
        _, rows, columns = processor.image_processor.get_number_of_image_patches(height, width)
        return ImagePlan(
            text=processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0),
            views=((1, 1),) * (rows * columns + 1),
            frame=(width, height),
        )

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> Tensor:
        """Tiles, the whole image last."""
        return processor.image_processor(images=[list(images)], return_tensors="pt")["pixel_values"][
            0
        ].flatten(1)

    def inputs(self, config: Any, pixel_values: Tensor, view_shapes: Tensor) -> dict[str, Any]:
        """All tiles as if they were of one sample: the model takes their features in order."""
        return {"pixel_values": tiles(pixel_values)[None]}

    def vision_sizes(self, config: Any) -> VisionSizes:
        """All layers on all patches of a tile."""
        return tile_tower(config.vision_config)

    def sizes(self, config: Any) -> ModelSizes:
        """Patches merged into squares, then one matrix."""
        return ModelSizes(
            vision=self.vision_sizes(config),
            merge=config.scale_factor,
            connector_hidden=0,
            **text_sizes(config.text_config),
        )

    def blank(self, config: Any) -> tuple[Tensor, Tensor]:
        """One light tile: one of zeros is padding, which the model leaves out."""
        return torch.ones(1, 3 * config.vision_config.image_size**2), torch.tensor([[0, 1, 1]])

    def limit(self, model: Any, processor: Any, limits: Limits) -> None:
        """The longer side of an image in tiles."""
        limits.only(self.model_type, "max_slices")
        if limits.max_slices is not None:
            images = processor.image_processor
            images.do_image_splitting = limits.max_slices > 0
            tile = images.max_image_size["longest_edge"]
            images.size = {"longest_edge": tile * max(1, math.isqrt(limits.max_slices))}


IDEFICS3 = SmolVLM("idefics3")
"""Idefics3 and the first SmolVLM."""

SMOLVLM = SmolVLM("smolvlm")
"""SmolVLM2."""
