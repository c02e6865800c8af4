"""The model's configuration: sub-configurations, slicing settings and schema token ids."""

from typing import Any, Literal, cast

from transformers import AutoConfig, PreTrainedConfig, SiglipVisionConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from infinity_mm.model.connectors.shape import ConnectorShape, connector_shape
from infinity_mm.vision.slicing import AspectGuard, SliceConfig


class InfinityMMConfig(PreTrainedConfig):
    """Everything needed to build the model and to plan its image views; saved as `config.json`."""

    model_type = "infinity_mm"
    sub_configs = cast(Any, {"text_config": AutoConfig, "vision_config": SiglipVisionConfig})

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    """SigLIP vision tower; `image_size / patch_size` is the side of its position table."""
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    """Any decoder-only language model; `model_type` defaults to qwen2."""
    connector: str = "pixel_unshuffle_mlp"
    """Name in `connectors.registry.CONNECTORS`."""
    connector_hidden: int | None = None
    """Width of the connector's hidden layer or attention; None means the language model's width."""
    connector_queries: int | None = None
    """Tokens a view of a connector with learned queries; None means its own: 144 regions, or 64."""
    merge: int | None = None
    """Side of the square of patches that becomes one token; None means the connector's own, and is replaced by it."""
    scale_px: int = 392
    """Side of the square whose area one view may have, in pixels."""
    max_slices: int = 6
    """Most slices per image, the overview not counted."""
    rounding: Literal["floor", "round"] = "floor"
    """How view sides become multiples of `patch * merge`."""
    max_aspect: float = 60.0
    """Largest allowed ratio of an image's sides."""
    aspect_action: Literal["refuse", "pad"] = "refuse"
    """What happens beyond `max_aspect`."""
    image_token_id: int | None = None
    """Id of the token that image features replace."""
    image_start_token_id: int | None = None
    """Id of the marker before an image."""
    image_end_token_id: int | None = None
    """Id of the marker after an image."""
    slice_token_id: int | None = None
    """Id of the marker before each slice."""
    row_token_id: int | None = None
    """Id of the marker after each row of slices."""
    tie_word_embeddings: bool = False
    """Whether the language model's head is its embedding; taken from `text_config` where that says so."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = SiglipVisionConfig()
        elif isinstance(self.vision_config, dict):
            self.vision_config = SiglipVisionConfig(**self.vision_config)
        if self.text_config is None:
            self.text_config = CONFIG_MAPPING["qwen2"]()
        elif isinstance(self.text_config, dict):
            text = {"model_type": "qwen2", **self.text_config}
            self.text_config = CONFIG_MAPPING[text["model_type"]](**text)
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)
        self.merge = self.connector_shape().merge
        super().__post_init__(**kwargs)

    def connector_shape(self) -> ConnectorShape:
        """How many tokens a view becomes."""
        return connector_shape(self.connector, merge=self.merge, queries=self.connector_queries)

    def slice_config(self) -> SliceConfig:
        """The slice planner's settings, with the connector's alignment and number of tokens."""
        shape = self.connector_shape()
        assert isinstance(self.vision_config, PreTrainedConfig)
        patch_px = self.vision_config.patch_size
        return SliceConfig(
            scale_px=self.scale_px,
            max_slices=self.max_slices,
            patch_px=patch_px,
            rounding=self.rounding,
            align_px=patch_px * shape.merge,
            view_tokens=shape.queries,
            aspect_guard=AspectGuard(max_aspect=self.max_aspect, action=self.aspect_action),
        )
