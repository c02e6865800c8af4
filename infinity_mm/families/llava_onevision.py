"""LLaVA-OneVision in transformers' own format: the whole image, then tiles of the pinpoint that suits it.

A row of `pixel_values` is a tile, which attends to itself alone. `view_shapes` has three more columns, because the
model needs them to leave padding out: the image's height, its width, and the images of its sample (with several, each
is one tile, padded to a square).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from infinity_mm.data.regions import Notation
from infinity_mm.errors import explain
from infinity_mm.families.base import Limits, Parts
from infinity_mm.families.stock import ImagePlan, StockFamily, tile_tower, tiles
from infinity_mm.model.flops import ModelSizes, VisionSizes, text_sizes


@final
class LlavaOnevision(StockFamily):
    """LLaVA-OneVision."""

    model_type = "llava_onevision"
    parts: Parts = {  # noqa: RUF012
        "vision_tower": ("model.vision_tower.",),
        "connector": ("model.multi_modal_projector.", "model.image_newline"),
        "language_model": ("model.language_model.", "lm_head."),
    }
    notation = Notation(box="[{}, {}, {}, {}]", point="[{}, {}]", grid=100, fraction=True)

    def idle(self, config: Any) -> tuple[str, ...]:
        """SigLIP's pooling head, and what comes after the layer whose features are taken."""
        tower, num_layers = "model.vision_tower.", config.vision_config.num_hidden_layers
        layers = tuple(f"{tower}encoder.layers.{number}." for number in range(_used(config), num_layers))
        return (f"{tower}head.", f"{tower}post_layernorm.", *layers)

    def vision_sizes(self, config: Any) -> VisionSizes:
        """The layers before the one whose features are taken; those after it are computed for nothing."""
        return tile_tower(config.vision_config, layers=_used(config))

    def sizes(self, config: Any) -> ModelSizes:
        """Two matrices between the two, applied to every patch of every tile."""
        if not isinstance(config.vision_feature_layer, int):
            raise explain(
                what=f"no formula for features of layers {config.vision_feature_layer} side by side",
                where="LlavaOnevision.sizes",
                fix="train it all the same, without MFU",
            )
        text = config.text_config
        return ModelSizes(
            vision=self.vision_sizes(config), merge=1, connector_hidden=text.hidden_size, **text_sizes(text)
        )

    def plan(self, processor: Any, sizes: Sequence[tuple[int, int]]) -> list[ImagePlan]:
        """Tiles for a single image, one square each for several."""
        return [self._plan(processor, *size, len(sizes)) for size in sizes]

    def _plan(self, processor: Any, width: int, height: int, num_images: int) -> ImagePlan:
        side = processor.image_processor.size["height"]
        cut = {
            "batch_num_images": [num_images],
            "image_sizes": [(height, width)] * num_images,
            "pixel_values": [[torch.empty(3, side, side, device="meta")]],
        }
        num_tiles = 1
        if num_images == 1:
            best = select_best_resolution((height, width), processor.image_processor.image_grid_pinpoints)
            num_tiles += (best[0] // side) * (best[1] // side)
        return ImagePlan(
            text=processor.replace_image_token(cut, 0),
            views=((1, 1),) * num_tiles,
            frame=(width, height),
            numbers=(height, width, num_images),
        )

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> Tensor:
        """Tiles; what the processor adds to make a batch square is cut off."""
        cut = processor.image_processor(images=[list(images)], return_tensors="pt")
        plans = self.plan(processor, [image.size for image in images])
        pairs = zip(plans, cut["pixel_values"], strict=True)
        return torch.cat([values[: len(plan.views)].flatten(1) for plan, values in pairs])

    def inputs(self, config: Any, pixel_values: Tensor, view_shapes: Tensor) -> dict[str, Any]:
        """Tiles, sizes, and how many images the sample of each has."""
        is_first = torch.ones_like(view_shapes[:, 0], dtype=torch.bool)
        is_first[1:] = view_shapes[1:, 0] != view_shapes[:-1, 0]
        numbers = view_shapes[is_first, 3:]
        batch_num_images: list[int] = []
        while sum(batch_num_images) < len(numbers):
            batch_num_images.append(int(numbers[sum(batch_num_images), 2]))
        return {
            "pixel_values": tiles(pixel_values),
            "image_sizes": numbers[:, :2],
            "batch_num_images": batch_num_images,
        }

    def blank(self, config: Any) -> tuple[Tensor, Tensor]:
        """One grey tile, said to be of several images so that it needs no second."""
        side = config.vision_config.image_size
        return torch.zeros(1, 3 * side**2), torch.tensor([[0, 1, 1, side, side, 2]])

    def limit(self, model: Any, processor: Any, limits: Limits) -> None:
        """Pinpoints of at most so many tiles."""
        limits.only(self.model_type, "max_slices")
        if limits.max_slices is None:
            return
        images = processor.image_processor
        area = limits.max_slices * images.size["height"] ** 2
        kept = [[rows, columns] for rows, columns in images.image_grid_pinpoints if rows * columns <= area]
        if not kept:
            raise explain(
                what=f"model.max_slices={limits.max_slices} leaves no way to cut an image",
                where="YAML section `model`",
                fix="give at least 1: LLaVA-OneVision sees the whole image and at least one tile",
            )
        images.image_grid_pinpoints = model.config.image_grid_pinpoints = kept


def _used(config: Any) -> int:
    """Layers of the tower that the features are made by."""
    taken = config.vision_feature_layer
    # Features 0 are the embeddings, features n what layer n - 1 gives; -1 counts from the end.
    num_features = config.vision_config.num_hidden_layers + 1
    return max(n % num_features for n in ([taken] if isinstance(taken, int) else taken))


LLAVA_ONEVISION = LlavaOnevision()
