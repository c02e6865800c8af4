"""Build a model and its processor from scratch, for given sizes."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.schema import SchemaTokens
from infinity_mm.model.tokenizer import END_OF_TEXT


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Sizes of a model built from scratch."""

    vision_hidden: int
    """Width of the vision tower."""
    vision_layers: int
    """Layers of the vision tower."""
    vision_heads: int
    """Attention heads of the vision tower."""
    vision_mlp: int
    """Hidden width of the vision tower's MLPs."""
    patch_px: int
    """Side of one patch, in pixels."""
    scale_px: int
    """Side of the square whose area one view may have, in pixels; its patch grid is the position table."""
    text_hidden: int
    """Width of the language model."""
    text_layers: int
    """Layers of the language model."""
    text_heads: int
    """Query heads of the language model."""
    text_kv_heads: int
    """Key-value heads of the language model."""
    text_mlp: int
    """Hidden width of the language model's MLPs."""
    connector: str = "pixel_unshuffle_mlp"
    """Name in `connectors.registry.CONNECTORS`."""
    connector_queries: int | None = None
    """Tokens a view of a connector with learned queries; None means its own."""
    merge: int | None = None
    """Side of the square of patches that becomes one token; None means the connector's own."""
    max_slices: int = 4
    """Most slices per image, the overview not counted."""
    rounding: Literal["floor", "round"] = "floor"
    """How view sides become multiples of `patch_px * merge`."""
    views: Literal["uhd", "anyres"] = "uhd"
    """How images are cut; with `anyres` a tile is `scale_px` wide, and `max_slices` and `rounding` are not read."""
    overview: Literal["first", "last"] = "first"
    """Whether the overview of `uhd` stands before or after the slices."""
    max_tiles: int = 9
    """For `anyres`: an image's feature map is shrunk to about this many tiles' worth of tokens."""
    max_positions: int = 4096
    """Longest sequence the language model is configured for, in tokens."""
    seed: int = 0
    """Seed of the initial weights."""


NANO = ModelSpec(
    vision_hidden=192, vision_layers=5, vision_heads=6, vision_mlp=768, patch_px=8, scale_px=64,
    text_hidden=192, text_layers=6, text_heads=6, text_kv_heads=3, text_mlp=512,
)  # fmt: skip
"""A few million parameters: trains on a laptop. Heads are 32 wide, the least that vLLM serves on a CPU."""


def build_vision_config(spec: ModelSpec) -> SiglipVisionConfig:
    """The configuration of the vision tower of `spec`."""
    return SiglipVisionConfig(
        hidden_size=spec.vision_hidden,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        intermediate_size=spec.vision_mlp,
        patch_size=spec.patch_px,
        image_size=spec.scale_px,
    )


def build_config(spec: ModelSpec, tokenizer: PreTrainedTokenizerFast) -> InfinityMMConfig:
    """The configuration of `spec` for a tokenizer that holds the schema tokens."""
    ids = SchemaTokens.of(spec.views).ids(tokenizer)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.text_hidden,
        num_hidden_layers=spec.text_layers,
        num_attention_heads=spec.text_heads,
        num_key_value_heads=spec.text_kv_heads,
        intermediate_size=spec.text_mlp,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    return InfinityMMConfig(
        vision_config=build_vision_config(spec),
        text_config=text,
        connector=spec.connector,
        connector_queries=spec.connector_queries,
        merge=spec.merge,
        scale_px=spec.scale_px,
        max_slices=spec.max_slices,
        rounding=spec.rounding,
        views=spec.views,
        overview=spec.overview,
        max_tiles=spec.max_tiles,
        image_token_id=ids.image,
        image_start_token_id=ids.image_start,
        image_end_token_id=ids.image_end,
        slice_token_id=ids.slice,
        row_token_id=ids.row,
    )


def build_processor(config: InfinityMMConfig, tokenizer: PreTrainedTokenizerFast) -> InfinityMMProcessor:
    """The processor that cuts and counts exactly as `config` says."""
    return InfinityMMProcessor(
        image_processor=InfinityMMImageProcessor.from_config(config),
        tokenizer=tokenizer,
        chat_template=cast(str, tokenizer.chat_template),
    )


def build_model(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerFast
) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """A model with fresh float32 weights, the same for the same seed, and its processor.

    The caller's random state is left as it was.
    """
    config = build_config(spec, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = InfinityMMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.get_vocab()[END_OF_TEXT]],
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    return model, build_processor(config, tokenizer)
