"""Our own model, one family among others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast, final

from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from infinity_mm.data.encode import NOTATION, Encoder, RowEncoder
from infinity_mm.families.base import Limits, Parts
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.flops import ModelSizes, model_sizes, vision_flops, vision_sizes
from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.load import load_model
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.vision.anyres import square_grids


@final
class InfinityMM:
    """The Aquila-VL-style model of `infinity_mm/model`."""

    model_type = "infinity_mm"
    parts: Parts = {  # noqa: RUF012
        "vision_tower": ("model.vision_tower.",),
        "connector": ("model.connector.", "model.image_newline"),
        "language_model": ("model.language_model.", "lm_head."),
    }
    packs = True
    notation = NOTATION

    def idle(self, config: Any) -> tuple[str, ...]:
        """None."""
        return ()

    def load(self, folder: Path, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Model and processor, also of released weights that become ours."""
        if options.keys() <= {"dtype"}:
            return load_model(folder, **options)
        model = InfinityMMForConditionalGeneration.from_pretrained(folder, **options)
        return model, InfinityMMProcessor.from_pretrained(folder)

    def limit(self, model: PreTrainedModel, processor: ProcessorMixin, limits: Limits) -> None:
        """Number and size of slices, or grids and cap of tiles."""
        config = cast(InfinityMMConfig, model.config)
        change_views(config, cast(InfinityMMProcessor, processor).image_processor, limits)

    def encoder(self, processor: ProcessorMixin) -> RowEncoder:
        """Our own encoder."""
        return Encoder(cast(InfinityMMProcessor, processor))

    def vision_cost(self, config: Any) -> Callable[[int, int], int]:
        """The formula of `model/flops.py`."""
        return partial(vision_flops, vision_sizes(config))

    def sizes(self, config: Any) -> ModelSizes:
        """The formula of `model/flops.py`."""
        return model_sizes(config)

    def trainable(self, model: PreTrainedModel) -> nn.Module:
        """The model itself: it has the loss."""
        return model


def change_views(config: InfinityMMConfig, images: InfinityMMImageProcessor, limits: Limits) -> None:
    """Cut images as `limits` say from now on; both objects keep it, so that it is saved with the model."""
    places = {"uhd": ("scale_px", "max_slices"), "anyres": ("max_grid", "max_tiles")}
    limits.only(f"a model that cuts images by {config.views}", *places[config.views])
    for key in places[config.views]:
        value = getattr(limits, key)
        for keeper in (config, images):
            if value is not None and key == "max_grid":
                keeper.grids = [list(grid) for grid in square_grids(value)]
            elif value is not None:
                setattr(keeper, key, value)
    config.view_config()  # impossible values fail here


INFINITY_MM = InfinityMM()
