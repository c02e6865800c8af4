"""From images to the packed patches the model reads, through the planner.

    images --upright RGB--> plan_images --> cut_views --to_patches, normalise--> pixel_values, view_shapes, image_sizes

Legend: P patches of all views, V views, S numbers about a view: image index, rows, columns, with `anyres` also the
width and height of its image.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput, make_flat_list_of_images, to_numpy_array

from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.vision.anyres import AnyresConfig, square_grids
from infinity_mm.vision.images import upright_rgb
from infinity_mm.vision.pixels import cut_views, normalise, to_patches
from infinity_mm.vision.plans import ImagePlan, ViewConfig, plan_images, view_shapes
from infinity_mm.vision.slicing import AspectGuard, SliceConfig


class InfinityMMImageProcessor(BaseImageProcessor):
    """Cuts images into views and packs their patches; the settings are those of `InfinityMMConfig`."""

    model_input_names = ["pixel_values", "view_shapes"]  # noqa: RUF012 (transformers' form)

    def __init__(
        self,
        *,
        views: Literal["uhd", "anyres"] = "uhd",
        scale_px: int = 392,
        max_slices: int = 6,
        patch_px: int = 14,
        merge: int = 2,
        view_tokens: int | None = None,
        rounding: Literal["floor", "round"] = "floor",
        max_aspect: float = 60.0,
        aspect_action: Literal["refuse", "pad"] = "refuse",
        overview: Literal["first", "last"] = "first",
        tile_px: int = 384,
        grids: Sequence[Sequence[int]] = square_grids(6),
        max_tiles: int = 9,
        image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.views: Literal["uhd", "anyres"] = views
        self.scale_px = scale_px
        self.max_slices = max_slices
        self.patch_px = patch_px
        self.merge = merge
        self.view_tokens = view_tokens
        self.rounding: Literal["floor", "round"] = rounding
        self.max_aspect = max_aspect
        self.aspect_action: Literal["refuse", "pad"] = aspect_action
        self.overview: Literal["first", "last"] = overview
        self.tile_px = tile_px
        self.grids = [list(grid) for grid in grids]
        self.max_tiles = max_tiles
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)

    @classmethod
    def from_config(cls, config: InfinityMMConfig, **kwargs: Any) -> "InfinityMMImageProcessor":
        """The image processor whose plans equal those of `config.view_config()`; `kwargs` are mean and deviation."""
        tiles = config.anyres_config()
        return cls(
            views=config.views,
            scale_px=config.scale_px,
            max_slices=config.max_slices,
            patch_px=tiles.patch_px,
            merge=tiles.cell_px // tiles.patch_px,
            view_tokens=config.connector_shape().queries,
            rounding=config.rounding,
            max_aspect=config.max_aspect,
            aspect_action=config.aspect_action,
            overview=config.overview,
            tile_px=tiles.tile_px,
            grids=tiles.grids,
            max_tiles=config.max_tiles,
            **kwargs,
        )

    def view_config(self) -> ViewConfig:
        """The planner's settings, whichever way images are cut."""
        return self.anyres_config() if self.views == "anyres" else self.slice_config()

    def slice_config(self) -> SliceConfig:
        """The settings of `uhd`."""
        return SliceConfig(
            scale_px=self.scale_px,
            max_slices=self.max_slices,
            patch_px=self.patch_px,
            rounding=self.rounding,
            align_px=self.patch_px * self.merge,
            view_tokens=self.view_tokens,
            aspect_guard=AspectGuard(max_aspect=self.max_aspect, action=self.aspect_action),
            overview=self.overview,
        )

    def anyres_config(self) -> AnyresConfig:
        """The settings of `anyres`."""
        return AnyresConfig(
            tile_px=self.tile_px,
            patch_px=self.patch_px,
            align_px=self.patch_px * self.merge,
            grids=tuple((columns, rows) for columns, rows in self.grids),
            max_tiles=self.max_tiles,
        )

    def preprocess(
        self, images: ImageInput, *args: Any, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Cut images into views.

        A nested list holds the images of each sample, which only `anyres` asks (see `plan_anyres`); in a flat list each
        image is a sample's only one, as in transformers' LLaVA-OneVision. Returns `pixel_values` (P, 3 * patch^2)
        float32, `view_shapes` (V, S), and `image_sizes` (images, 2) with (width, height) in pixels.
        """
        pictures: list[Image.Image] = []
        plans: list[ImagePlan] = []
        for sample in _samples(self.fetch_images(cast(Any, images))):
            its_pictures = [_picture(image) for image in sample]
            plans += plan_images([picture.size for picture in its_pictures], self.view_config())
            pictures += its_pictures
        data = {
            "pixel_values": self.pixels(pictures, plans).numpy(),
            "view_shapes": np.array(view_shapes(plans), dtype=np.int64),
            "image_sizes": np.array([picture.size for picture in pictures], dtype=np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def pixels(
        self, pictures: Sequence[Image.Image], plans: Sequence[ImagePlan]
    ) -> Float32[Tensor, "P values"]:
        """The patches of upright RGB pictures, cut as `plans` say."""
        views = [
            view
            for picture, plan in zip(pictures, plans, strict=True)
            for view in cut_views(picture, plan, self.image_mean)
        ]
        return normalise(to_patches(views, self.patch_px), self.image_mean, self.image_std)


def _samples(images: Any) -> list[list[Any]]:
    """The images of each sample."""
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
        return [list(sample) for sample in images]
    flat: Any = make_flat_list_of_images(cast(Any, images))
    return [[image] for image in flat]


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
