"""A model from published parts: a SigLIP tower, a fresh connector, any decoder-only language model.

language model, tokenizer --schema tokens, new rows--> + vision tower + fresh connector --> model, processor
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from infinity_mm.errors import explain
from infinity_mm.model.build import build_processor
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.connectors.registry import CONNECTORS
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.schema import SchemaTokens
from infinity_mm.model.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, PAD
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.model.vision_weights import load_vision_tower
from infinity_mm.model.vocabulary import MEANINGS, grow, start_rows

_PROBE = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsSpec:
    """Which parts a model is put together from."""

    vision: str
    """Folder or Hub id of a SigLIP or fixed-resolution SigLIP 2 (transformers or open_clip), or of our own model."""
    language: str
    """Folder or Hub id of a decoder-only language model with its tokenizer."""
    vision_layers: int | None = None
    """Keep only the first so many layers of the tower; None keeps all."""
    vision_post_layernorm: bool = True
    """Read the tower after its last layer norm; LLaVA reads before it."""
    connector: str = "pixel_unshuffle_mlp"
    """Name in `connectors.registry.CONNECTORS`."""
    connector_hidden: int | None = None
    """Width of the connector's hidden layer or attention; None means the language model's width."""
    connector_queries: int | None = None
    """Tokens a view of a connector with learned queries; None means its own."""
    merge: int | None = None
    """Side of the square of patches that becomes one token; None means the connector's own."""
    views: Literal["uhd", "anyres"] = "uhd"
    """How images are cut; with `anyres` a tile is as large as the tower's images, and the next four are not read."""
    scale_px: int = 392
    """Side of the square whose area one view may have, in pixels."""
    max_slices: int = 6
    """Most slices per image, the overview not counted."""
    rounding: Literal["floor", "round"] = "floor"
    """How view sides become multiples of `patch * merge`."""
    overview: Literal["first", "last"] = "first"
    """Whether the overview stands before or after the slices."""
    max_tiles: int = 9
    """For `anyres`: an image's feature map is shrunk to about this many tiles' worth of tokens."""
    seed: int = 0
    """Seed of the connector's initial weights."""


def build_from_parts(spec: PartsSpec) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """A float32 model with its processor; the same for the same seed.

    Raises UserError for parts that do not fit, among them a language model whose own logits the whole cannot give.
    """
    tower = load_vision_tower(
        spec.vision, num_layers=spec.vision_layers, post_layernorm=spec.vision_post_layernorm
    )
    tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(spec.language))
    language: Any = AutoModelForCausalLM.from_pretrained(spec.language, dtype=torch.float32)
    own_end = tokenizer.eos_token_id
    extend_vocabulary(tokenizer, language, SchemaTokens.of(spec.views))
    config = _config(spec, tower, language, tokenizer)
    model = _join(spec, config, tower, language)
    vocab = tokenizer.get_vocab()
    ends = dict.fromkeys([vocab[IM_END], own_end, vocab.get(END_OF_TEXT)])
    model.generation_config = GenerationConfig(
        eos_token_id=[end for end in ends if end is not None],
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    return model.eval(), build_processor(config, tokenizer)


def extend_vocabulary(tokenizer: PreTrainedTokenizerFast, language: Any, schema: SchemaTokens) -> None:
    """Give tokenizer and language model the schema's and ChatML's tokens, and a template that writes images.

    The tokenizer's own chat template is kept where it writes a conversation with an image as ours does.
    """
    pieces = {token: tokenizer.encode(text, add_special_tokens=False) for token, text in MEANINGS.items()}
    wanted = [*schema.all, IM_START, IM_END, *([PAD] if tokenizer.pad_token is None else [])]
    known = tokenizer.get_vocab()
    new = [token for token in wanted if token not in known]
    added: Any = [AddedToken(token, special=True, normalized=False) for token in new]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.eos_token = IM_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    tokenizer.padding_side = "left"
    if not _writes_as_ours(tokenizer):
        tokenizer.chat_template = CHAT_TEMPLATE
    grow(language, len(tokenizer))
    start_rows(language, {tokenizer.get_vocab()[token]: pieces[token] for token in new})


def _writes_as_ours(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer's template writes a conversation with an image as `CHAT_TEMPLATE`, which training uses."""
    if tokenizer.chat_template is None:
        return False
    try:
        written = tokenizer.apply_chat_template(_PROBE, tokenize=False)
    except Exception:  # a template may refuse typed content with any error of Jinja's
        return False
    return written == tokenizer.apply_chat_template(_PROBE, tokenize=False, chat_template=CHAT_TEMPLATE)


def _config(
    spec: PartsSpec, tower: VisionTower, language: Any, tokenizer: PreTrainedTokenizerFast
) -> InfinityMMConfig:
    """The whole model's configuration, with the ids of this tokenizer."""
    ids = SchemaTokens.of(spec.views).ids(tokenizer)
    language.config.eos_token_id = tokenizer.eos_token_id
    language.config.pad_token_id = tokenizer.pad_token_id
    return InfinityMMConfig(
        vision_config=tower.config,
        text_config=language.config,
        connector=spec.connector,
        connector_hidden=spec.connector_hidden,
        connector_queries=spec.connector_queries,
        merge=spec.merge,
        scale_px=spec.scale_px,
        max_slices=spec.max_slices,
        rounding=spec.rounding,
        views=spec.views,
        overview=spec.overview,
        max_tiles=spec.max_tiles,
        vision_post_layernorm=spec.vision_post_layernorm,
        image_token_id=ids.image,
        image_start_token_id=ids.image_start,
        image_end_token_id=ids.image_end,
        slice_token_id=ids.slice,
        row_token_id=ids.row,
    )


def _join(
    spec: PartsSpec, config: InfinityMMConfig, tower: VisionTower, language: Any
) -> InfinityMMForConditionalGeneration:
    """The parts in one module, without a second copy of their weights; only the connector is new."""
    head = language.get_output_embeddings()
    with torch.device("meta"):
        model = InfinityMMForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        text = cast(Any, config.text_config)
        connector = CONNECTORS[config.connector](
            vision_dim=tower.config.hidden_size,
            text_dim=text.hidden_size,
            hidden_dim=config.connector_hidden or text.hidden_size,
            shape=config.connector_shape(),
        )
        connector.apply(model._init_weights)
        newline_E = torch.randn(text.hidden_size) * text.hidden_size**-0.5
    model.model.vision_tower = tower
    model.model.connector = connector
    if config.views == "anyres":
        model.model.image_newline = nn.Parameter(newline_E)
    model.model.language_model = language.base_model
    model.lm_head = head
    model.set_attn_implementation("sdpa")
    _check_text(spec, model, language)
    return model


def _check_text(spec: PartsSpec, model: nn.Module, language: Any) -> None:
    """Raise UserError unless the whole model gives the language model's own logits for text."""
    probe = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        moved = float(
            (model.eval()(probe).logits - language.eval()(probe, use_cache=False).logits).abs().max()
        )
    if not moved < 1e-3:
        raise explain(
            what=f"with text alone the whole model's logits differ by {moved:g} from those of {spec.language}",
            where="model.parts.language",
            fix="use a language model whose head is one matrix, such as Qwen2, Qwen3, Llama, Mistral",
        )
