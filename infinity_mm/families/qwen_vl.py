"""Qwen2.5-VL and Qwen3-VL: patches of images of any size, three position axes.

A row of `pixel_values` is a patch, an image one view. Images attend to themselves alone (windows by `image_grid_thw`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from infinity_mm.data.regions import Notation
from infinity_mm.errors import explain
from infinity_mm.families.base import Limits, Parts
from infinity_mm.families.mrope import mrope
from infinity_mm.families.stock import ImagePlan, StockFamily
from infinity_mm.model.flops import ModelSizes, VisionSizes, text_sizes


@final
class QwenVL(StockFamily):
    """One of the two; they differ in how they write boxes and, inside the model, in much else."""

    parts: Parts = {  # noqa: RUF012
        "vision_tower": ("model.visual.",),
        "connector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
        "language_model": ("model.language_model.", "lm_head."),
    }

    def __init__(self, model_type: str, notation: Notation) -> None:
        self.model_type, self.notation = model_type, notation

    def plan(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[ImagePlan]:
        """One view as large as the limits in pixels allow."""
        return [self._plan(processor, *size) for size in sizes]

    def _plan(self, processor: Any, width: int, height: int) -> ImagePlan:
        images = processor.image_processor
        try:
            resized = smart_resize(
                height,
                width,
                factor=images.patch_size * images.merge_size,
                min_pixels=images.size["shortest_edge"],
                max_pixels=images.size["longest_edge"],
            )
        except ValueError as error:  # sides of more than 200 to 1
            raise explain(
                what=f"an image of {width}x{height} px: {error}",
                where=f"the image processor of {self.model_type}",
                fix="leave it out, or cut it into pieces",
            ) from error
        rows, columns = (side // images.patch_size for side in resized)
        grid = torch.tensor([[1, rows, columns]])
        return ImagePlan(
            text=processor.replace_image_token({"image_grid_thw": grid}, 0),
            views=((rows, columns),),
            frame=(resized[1], resized[0]),
        )

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> Tensor:
        """Patches, those of one merged token side by side."""
        return processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"].float()

    def inputs(self, config: Any, pixel_values: Tensor, view_shapes: Tensor) -> dict[str, Any]:
        """Patches and grids."""
        grids = torch.cat([torch.ones_like(view_shapes[:, :1]), view_shapes[:, 1:]], dim=1)
        return {"pixel_values": pixel_values, "image_grid_thw": grids}

    def positions(
        self, config: Any, input_ids: Tensor, position_ids: Tensor, view_shapes: Tensor | None
    ) -> Tensor:
        """Time, height and width."""
        is_image_RT = input_ids == config.image_token_id
        return mrope(position_ids, is_image_RT, view_shapes, config.vision_config.spatial_merge_size)

    def vision_sizes(self, config: Any) -> VisionSizes:
        """Qwen2.5-VL has gated MLPs, and windows in most layers."""
        vision = config.vision_config
        gated = self.model_type == "qwen2_5_vl"
        channels = getattr(vision, "in_channels", 3)
        return VisionSizes(
            patch_values=channels * vision.temporal_patch_size * vision.patch_size**2,
            hidden=vision.hidden_size,
            layers=vision.depth,
            mlp=vision.intermediate_size,
            mlp_matrices=3 if gated else 2,
            window=vision.window_size // vision.patch_size if gated else None,
            full_layers=len(vision.fullatt_block_indexes) if gated else 0,
        )

    def sizes(self, config: Any) -> ModelSizes:
        """The merger, and in Qwen3-VL one more of its kind for every deepstack layer."""
        vision = config.vision_config
        return ModelSizes(
            vision=self.vision_sizes(config),
            merge=vision.spatial_merge_size,
            connector_hidden=vision.hidden_size * vision.spatial_merge_size**2,
            connectors=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
            **text_sizes(config.text_config),
        )

    def blank(self, config: Any) -> tuple[Tensor, Tensor]:
        """The patches of one token."""
        vision = config.vision_config
        merge, channels = vision.spatial_merge_size, getattr(vision, "in_channels", 3)
        values = channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(merge**2, values), torch.tensor([[0, merge, merge]])

    def limit(self, model: Any, processor: Any, limits: Limits) -> None:
        """Areas."""
        limits.only(self.model_type, "min_pixels", "max_pixels")
        size = dict(processor.image_processor.size)
        size["shortest_edge"] = limits.min_pixels or size["shortest_edge"]
        size["longest_edge"] = limits.max_pixels or size["longest_edge"]
        processor.image_processor.size = size


QWEN2_5_VL = QwenVL(
    "qwen2_5_vl",
    Notation(box='{"bbox_2d": [{}, {}, {}, {}]}', point='{"point_2d": [{}, {}]}', grid=None),
)
"""Boxes in pixels of the resized image."""

QWEN3_VL = QwenVL(
    "qwen3_vl",
    Notation(box='{"bbox_2d": [{}, {}, {}, {}]}', point='{"point_2d": [{}, {}]}', grid=1000),
)
"""Boxes in thousandths of the image."""
