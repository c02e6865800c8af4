"""The model's configuration: sub-configurations, how images are cut, and schema token ids."""

from typing import Any, Literal, cast

from transformers import AutoConfig, PreTrainedConfig, SiglipVisionConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from infinity_mm.errors import explain
from infinity_mm.model.connectors.shape import ConnectorShape, connector_shape
from infinity_mm.vision.anyres import AnyresConfig, square_grids
from infinity_mm.vision.plans import ViewConfig
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
    views: Literal["uhd", "anyres"] = "uhd"
    """How images are cut: `uhd` (LLaVA-UHD's slices and an overview, with markers) or `anyres` (LLaVA-OneVision's
    tiles and a base view, with learned newlines)."""
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
    overview: Literal["first", "last"] = "first"
    """Whether the overview stands before or after the slices; this and the five keys above are for `uhd`."""
    grids: list[list[int]] | None = None
    """For `anyres`: (columns, rows) of tiles an image may be cut into; None means 1x1 to 6x6. The side of a tile is
    the vision tower's `image_size`."""
    max_tiles: int = 9
    """For `anyres`: an image's feature map is shrunk to about this many tiles' worth of tokens."""
    vision_post_layernorm: bool = True
    """Whether the connector reads the vision tower after its last layer norm; LLaVA-OneVision reads before it."""
    image_token_id: int | None = None
    """Id of the token that image features replace; the four markers below are for `uhd`."""
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
        shape = self.connector_shape()
        if self.views == "anyres" and shape.queries is not None:
            raise explain(
                what=f"views: anyres needs a connector that keeps the grid of patches, {self.connector} does not",
                where="model configuration",
                fix="set connector: mlp or pixel_unshuffle_mlp, or views: uhd",
            )
        self.merge = shape.merge
        super().__post_init__(**kwargs)

    def connector_shape(self) -> ConnectorShape:
        """How many tokens a view becomes."""
        return connector_shape(self.connector, merge=self.merge, queries=self.connector_queries)

    def view_config(self) -> ViewConfig:
        """The planner's settings, whichever way images are cut."""
        return self.anyres_config() if self.views == "anyres" else self.slice_config()

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
            overview=self.overview,
        )

    def anyres_config(self) -> AnyresConfig:
        """The settings of `anyres`; a tile is as large as the images the vision tower was made for."""
        assert isinstance(self.vision_config, PreTrainedConfig)
        patch_px = self.vision_config.patch_size
        return AnyresConfig(
            tile_px=self.vision_config.image_size,
            patch_px=patch_px,
            align_px=patch_px * self.connector_shape().merge,
            grids=square_grids(6) if self.grids is None else tuple((x, y) for x, y in self.grids),
            max_tiles=self.max_tiles,
        )
