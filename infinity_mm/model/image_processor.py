"""From images to the packed patches the model reads, through the slice planner.

    images --upright RGB--> plan_slices --> cut_views --to_patches, normalise--> pixel_values, view_shapes, image_sizes

Legend: P patches of all views, V views.
"""

from typing import Any, Literal, cast

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput, make_flat_list_of_images, to_numpy_array

from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.vision.images import upright_rgb
from infinity_mm.vision.pixels import cut_views, normalise, to_patches
from infinity_mm.vision.slicing import AspectGuard, SliceConfig, plan_slices


class InfinityMMImageProcessor(BaseImageProcessor):
    """Cuts images into overview and slices and packs their patches."""

    model_input_names = ["pixel_values", "view_shapes"]  # noqa: RUF012 (transformers' form)

    def __init__(
        self,
        *,
        scale_px: int = 392,
        max_slices: int = 6,
        patch_px: int = 14,
        merge: int = 2,
        view_tokens: int | None = None,
        rounding: Literal["floor", "round"] = "floor",
        max_aspect: float = 60.0,
        aspect_action: Literal["refuse", "pad"] = "refuse",
        image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scale_px = scale_px
        self.max_slices = max_slices
        self.patch_px = patch_px
        self.merge = merge
        self.view_tokens = view_tokens
        self.rounding: Literal["floor", "round"] = rounding
        self.max_aspect = max_aspect
        self.aspect_action: Literal["refuse", "pad"] = aspect_action
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)

    @classmethod
    def from_config(cls, config: InfinityMMConfig) -> "InfinityMMImageProcessor":
        """The image processor whose plans equal `config.slice_config()`'s."""
        plan = config.slice_config()
        return cls(
            scale_px=config.scale_px,
            max_slices=config.max_slices,
            patch_px=plan.patch_px,
            merge=plan.cell_px // plan.patch_px,
            view_tokens=plan.view_tokens,
            rounding=config.rounding,
            max_aspect=config.max_aspect,
            aspect_action=config.aspect_action,
        )

    def slice_config(self) -> SliceConfig:
        """The slice planner's settings."""
        return SliceConfig(
            scale_px=self.scale_px,
            max_slices=self.max_slices,
            patch_px=self.patch_px,
            rounding=self.rounding,
            align_px=self.patch_px * self.merge,
            view_tokens=self.view_tokens,
            aspect_guard=AspectGuard(max_aspect=self.max_aspect, action=self.aspect_action),
        )

    def preprocess(
        self, images: ImageInput, *args: Any, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Cut images into views.

        Returns `pixel_values` (P, 3 * patch^2) float32, `view_shapes` (V, 3) with (image index, rows, columns) in
        patches, and `image_sizes` (images, 2) with (width, height) in pixels.
        """
        config = self.slice_config()
        views, shapes, sizes = [], [], []
        fetched = self.fetch_images(cast(Any, images))
        for index, image in enumerate(cast(list[Any], make_flat_list_of_images(cast(Any, fetched)))):
            picture = _picture(image)
            plan = plan_slices(*picture.size, config)
            views += cut_views(picture, plan)
            shapes += [(index, rows, columns) for rows, columns in plan.view_shapes]
            sizes.append(picture.size)
        data = {
            "pixel_values": normalise(
                to_patches(views, self.patch_px), self.image_mean, self.image_std
            ).numpy(),
            "view_shapes": np.array(shapes, dtype=np.int64),
            "image_sizes": np.array(sizes, dtype=np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)


def _picture(image: Any) -> Image.Image:
    """Any input transformers accepts as an upright RGB picture; arrays hold 0 to 255, or floats 0 to 1."""
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    array = to_numpy_array(image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f":
        array = (array * 255).round()
    array = array.clip(0, 255).astype(np.uint8)
    return upright_rgb(Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array))
