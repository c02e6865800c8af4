"""Read released LLaVA-OneVision-style checkpoints (LLaVA-OneVision, Aquila-VL-2B) as our model.

    config.json --which naming?--> our configuration
    safetensors --key map, every tensor accounted for--> our tensors --> model
    tokenizer files, image mean and deviation --> processor

Two namings are read: LLaVA-NeXT's (`model.mm_projector.0.weight`, a `config.json` with `mm_*` keys) and transformers'
(`model_type: llava_onevision`, its current tensor names and the older ones that checkpoints on the Hub have). A tensor
that the map does not know, or that is missing, is an error that names it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from infinity_mm.errors import explain
from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.image_processor import InfinityMMImageProcessor
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.processor import InfinityMMProcessor
from infinity_mm.model.schema import SchemaTokens
from infinity_mm.model.tokenizer import END_OF_TEXT, IM_END, IM_START, chat_template
from infinity_mm.model.vocabulary import MEANINGS, grow, start_rows

KNOWN_TOWERS = {
    "siglip-so400m-patch14-384": SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
        image_size=384, patch_size=14,
    ),
}  # fmt: skip
"""Vision towers by the last part of `mm_vision_tower`; their sizes are in no LLaVA-NeXT checkpoint."""

_OURS = {
    "vision": "model.vision_tower.",
    "projector_in": "model.connector.up.",
    "projector_out": "model.connector.down.",
    "newline": "model.image_newline",
    "text": "model.language_model.",
    "head": "lm_head.",
}
"""Part of the model -> prefix of its tensors in our naming."""

LLAVA_NEXT = {
    "vision": ("model.vision_tower.vision_tower.vision_model.",),
    "projector_in": ("model.mm_projector.0.",),
    "projector_out": ("model.mm_projector.2.",),
    "newline": ("model.image_newline",),
    "text": ("model.",),
    "head": ("lm_head.",),
}
"""Part -> prefixes in LLaVA-NeXT's naming; the first part that fits has the tensor."""

TRANSFORMERS = {
    "vision": (
        "vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.",
    ),
    "projector_in": ("multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_1."),
    "projector_out": ("multi_modal_projector.linear_2.", "model.multi_modal_projector.linear_2."),
    "newline": ("image_newline", "model.image_newline"),
    "text": ("language_model.model.", "model.language_model."),
    "head": ("language_model.lm_head.", "lm_head."),
}  # fmt: skip
"""Part -> prefixes in transformers' naming: as files have them (`vision_model.` in those on the Hub, not in what
transformers 5 writes), and as the modules are called."""

_IGNORED = {
    "vision": (
        re.compile(r"head\."),  # SigLIP's attention pooling, for an embedding of the whole image
        re.compile(r"post_layernorm\."),  # the connector reads the features before it
        re.compile(r"embeddings\.position_ids$"),  # a buffer that old versions saved
    ),
    "text": (re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$"),),  # another such buffer
}
"""Tensors that no part of our model has a use for, by part; beside them only vision layers that are not run."""

_VISION_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class _Release:
    """One released checkpoint's configuration, in our terms."""

    config: InfinityMMConfig
    """Without token ids, which the tokenizer knows."""
    image_token_id: int | None
    """Of the checkpoint's own image token; None where it has none, as in LLaVA-NeXT."""
    normalisation: dict[str, Any]
    """`image_mean` and `image_std`, where they are not SigLIP's."""


def is_released(folder: Path) -> bool:
    """Whether `config.json` in `folder` is that of a released checkpoint in one of the two namings."""
    raw = _raw_config(folder)
    return raw.get("model_type") == "llava_onevision" or _is_llava_next(raw)


def load_released(
    folder: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[InfinityMMForConditionalGeneration, InfinityMMProcessor]:
    """Model and processor of a released checkpoint.

    Raises UserError for a configuration we have no equal for, and for unknown, missing or misshapen tensors.
    """
    config, processor = read_released(folder)
    is_next = _is_llava_next(_raw_config(folder))
    model = _load(folder, config, LLAVA_NEXT if is_next else TRANSFORMERS, dtype)
    grow(model, len(processor.tokenizer))
    if is_next:  # its tokenizers have no image token, so that this one is new
        pieces = processor.tokenizer.encode(MEANINGS[SchemaTokens().image], add_special_tokens=False)
        start_rows(model, {processor.image_token_id: pieces})
    model.generation_config = _generation_config(processor.tokenizer)
    return model, processor


def read_released(folder: Path) -> tuple[InfinityMMConfig, InfinityMMProcessor]:
    """Configuration, in our terms, and processor of a released checkpoint, without its weights."""
    raw = _raw_config(folder)
    release = _from_llava_next(raw, folder) if _is_llava_next(raw) else _from_transformers(folder)
    tokenizer, image_token = _tokenizer(folder, release.image_token_id)
    config = release.config
    config.image_token_id = tokenizer.get_vocab()[image_token]
    processor = InfinityMMProcessor(
        image_processor=InfinityMMImageProcessor.from_config(config, **release.normalisation),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_token=image_token,
    )
    return config, processor


def _is_llava_next(raw: dict[str, Any]) -> bool:
    return "mm_vision_tower" in raw


def _raw_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _tokenizer(folder: Path, image_token_id: int | None) -> tuple[Any, str]:
    """The checkpoint's tokenizer, set up as our own are, and the text of its image token, added where it has none."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    vocab = tokenizer.get_vocab()
    if missing := [token for token in (IM_START, IM_END) if token not in vocab]:
        raise explain(
            what=f"the tokenizer has no {', '.join(missing)}, so conversations cannot be written as ChatML",
            where=str(folder),
            fix="use the tokenizer files that were released with the checkpoint",
        )
    image_token = SchemaTokens().image
    if image_token_id is not None:
        image_token = tokenizer.convert_ids_to_tokens(image_token_id)
    tokenizer.add_special_tokens(
        {
            "eos_token": IM_END,
            "pad_token": tokenizer.pad_token or IM_END,
            "additional_special_tokens": [image_token],
        },
        replace_extra_special_tokens=False,
    )
    tokenizer.padding_side = "left"
    tokenizer.chat_template = chat_template(
        image_token, newline=True
    )  # LLaVA's data has one, "<image>\nWhat ..."
    return tokenizer, image_token


def _from_transformers(folder: Path) -> _Release:
    """The configuration of a checkpoint in transformers' naming."""
    theirs = cast(LlavaOnevisionConfig, AutoConfig.from_pretrained(folder))
    _check(isinstance(theirs.vision_config, SiglipVisionConfig), "vision_config", "a SigLIP tower", folder)
    _check(
        theirs.vision_feature_select_strategy == "full", "vision_feature_select_strategy", "'full'", folder
    )
    _check(isinstance(theirs.vision_feature_layer, int), "vision_feature_layer", "one layer", folder)
    _check(theirs.projector_hidden_act == "gelu", "projector_hidden_act", "'gelu'", folder)
    _check(theirs.multimodal_projector_bias, "multimodal_projector_bias", "true", folder)
    vision = cast(SiglipVisionConfig, theirs.vision_config)
    layer = cast(int, theirs.vision_feature_layer)
    num_layers = layer if layer >= 0 else cast(int, vision.num_hidden_layers) + 1 + layer
    images = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    return _Release(
        config=_our_config(
            vision=vision,
            num_layers=num_layers,
            text=cast(PreTrainedConfig, theirs.text_config),
            tied=bool(theirs.tie_word_embeddings),
            aspect=theirs.vision_aspect_ratio,
            # Theirs are (height, width).
            pinpoints=[(width, height) for height, width in cast(Any, theirs.image_grid_pinpoints)],
            folder=folder,
        ),
        image_token_id=theirs.image_token_id,
        normalisation={"image_mean": images.image_mean, "image_std": images.image_std},
    )


def _from_llava_next(raw: dict[str, Any], folder: Path) -> _Release:
    """The configuration of a checkpoint in LLaVA-NeXT's naming."""
    architecture = raw.get("architectures", ["?"])[0]
    _check(architecture == "LlavaQwenForCausalLM", "architectures", "LlavaQwenForCausalLM", folder)
    for key, value in (
        ("mm_projector_type", "mlp2x_gelu"),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("mm_vision_select_feature", "patch"),
    ):
        _check(raw.get(key) == value, key, repr(value), folder)
    _check(not raw.get("mm_use_im_start_end"), "mm_use_im_start_end", "false", folder)
    vision = _tower_config(raw["mm_vision_tower"], folder)
    known = {*Qwen2Config().to_dict(), "rope_theta", "rope_scaling"} - {
        "model_type",
        "architectures",
        "dtype",
    }
    return _Release(
        config=_our_config(
            vision=vision,
            num_layers=cast(int, vision.num_hidden_layers)
            - 1,  # LLaVA-NeXT's tower always drops its last layer
            text=Qwen2Config(**{key: value for key, value in raw.items() if key in known}),
            tied=bool(raw.get("tie_word_embeddings")),
            aspect=str(raw.get("image_aspect_ratio")),
            pinpoints=_pinpoints(raw["image_grid_pinpoints"], cast(int, vision.image_size)),
            folder=folder,
        ),
        image_token_id=None,
        normalisation={},
    )


def _tower_config(name: str, folder: Path) -> SiglipVisionConfig:
    """The sizes of the vision tower a LLaVA-NeXT configuration names: a folder that exists, or a known tower."""
    if (folder / name / "config.json").is_file():
        return SiglipVisionConfig.from_pretrained(folder / name)
    tower = KNOWN_TOWERS.get(name.rstrip("/").rpartition("/")[2])
    if tower is None:
        raise explain(
            what=f"the sizes of the vision tower {name!r} are not known",
            where=f"mm_vision_tower in {folder / 'config.json'}",
            fix=f"set it to a folder with the tower's config.json, or to one of {', '.join(KNOWN_TOWERS)}",
        )
    return tower


def _pinpoints(value: str | list[list[int]], tile_px: int) -> list[tuple[int, int]]:
    """LLaVA-NeXT's (width, height) pinpoints: a list, or a range such as `(1x1),...,(6x6)` in tiles."""
    if not isinstance(value, str):
        return [(width, height) for width, height in value]
    first, *_, last = ((int(w), int(h)) for w, h in re.findall(r"\((\d+)x(\d+)\)", value))
    widths, heights = range(first[0], last[0] + 1), range(first[1], last[1] + 1)
    return [(width * tile_px, height * tile_px) for width in widths for height in heights]


def _our_config(
    *,
    vision: SiglipVisionConfig,
    num_layers: int,
    text: PreTrainedConfig,
    tied: bool,
    aspect: str,
    pinpoints: Sequence[tuple[int, int]],
    folder: Path,
) -> InfinityMMConfig:
    """Our configuration, without token ids; `pinpoints` are (width, height) in pixels."""
    cap = re.fullmatch(r"anyres_max_(\d+)", aspect)
    _check(cap is not None, "the aspect ratio mode", "anyres_max_<number>", folder)
    tile = cast(int, vision.image_size)
    whole = all(width % tile == 0 and height % tile == 0 for width, height in pinpoints)
    _check(whole, "image_grid_pinpoints", f"multiples of the tower's {tile} px", folder)
    return InfinityMMConfig(
        vision_config={**vision.to_dict(), "num_hidden_layers": num_layers},
        text_config=text,
        connector="mlp",
        merge=1,
        views="anyres",
        grids=[[width // tile, height // tile] for width, height in pinpoints],
        max_tiles=int(cast(re.Match[str], cap)[1]),
        vision_post_layernorm=False,
        tie_word_embeddings=tied,
    )


def _check(holds: bool, key: str, wanted: str, folder: Path) -> None:
    """Raise UserError when a released configuration is of a kind we have no equal for."""
    if not holds:
        raise explain(
            what=f"this checkpoint cannot be read: {key} is not {wanted}",
            where=str(folder / "config.json"),
            fix="read a checkpoint of the LLaVA-OneVision kind (SigLIP, two-layer GELU projector, anyres_max), "
            "or start from the parts themselves",
        )


def _load(
    folder: Path, config: InfinityMMConfig, prefixes: Mapping[str, tuple[str, ...]], dtype: torch.dtype
) -> InfinityMMForConditionalGeneration:
    """The model with the folder's weights; every tensor of both is accounted for."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in InfinityMMForConditionalGeneration(config).state_dict().items()}
    tensors: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, read in _tensors(folder):
        ours = our_name(name, prefixes, num_layers=cast(Any, config.vision_config).num_hidden_layers)
        if ours is None:
            continue
        if ours not in shapes or ours in tensors:
            unknown.append(name)
            continue
        tensors[ours] = read()
        if tensors[ours].shape != shapes[ours]:
            raise explain(
                what=f"{name} has shape {list(tensors[ours].shape)}, config.json wants {list(shapes[ours])}",
                where=str(folder),
                fix="put the config.json beside the weights that it was released with",
            )
    if config.tie_word_embeddings:
        _drop_tied_head(tensors, folder)
    missing = sorted(
        shapes.keys() - tensors.keys() - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    )
    if unknown or missing:
        raise explain(
            what=f"tensors without a place in our model: {_some(unknown)}; "
            f"tensors of our model (in our naming) that are missing: {_some(missing)}",
            where=str(folder),
            fix="read a complete checkpoint of the LLaVA-OneVision kind; the key map is infinity_mm/model/released.py",
        )
    model = InfinityMMForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype
    )
    return cast(InfinityMMForConditionalGeneration, model)


def our_name(name: str, prefixes: Mapping[str, tuple[str, ...]], *, num_layers: int) -> str | None:
    """Our name of a released tensor; None for one that is left out on purpose, `name` itself for an unknown one."""
    for part, starts in prefixes.items():
        for start in starts:
            if not name.startswith(start):
                continue
            rest = name.removeprefix(start)
            layer = _VISION_LAYER.match(rest) if part == "vision" else None
            if any(pattern.match(rest) for pattern in _IGNORED.get(part, ())) or (
                layer is not None and int(layer[1]) >= num_layers
            ):
                return None
            return _OURS[part] + rest
    return name


def _tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, how to read it) of every tensor in the folder's safetensors."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    absent = [name for name in files if not (folder / name).is_file()] or ([] if files else ["*.safetensors"])
    if absent:
        raise explain(
            what=f"the checkpoint lacks {_some(absent)}",
            where=str(folder),
            fix="copy all of its safetensors; pickled weights (*.bin) are not read",
        )
    for file in files:
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, partial(opened.get_tensor, name)


def _drop_tied_head(tensors: dict[str, Tensor], folder: Path) -> None:
    """The head of a tied model is its embedding; a copy in the file must say the same."""
    head = tensors.pop("lm_head.weight", None)
    embedding = tensors.get("model.language_model.embed_tokens.weight")
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise explain(
            what="lm_head.weight differs from the embedding, but config.json says that they are tied",
            where=str(folder),
            fix="set tie_word_embeddings to false if the head was trained by itself",
        )


def _some(names: Sequence[str]) -> str:
    """At most eight names."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def _generation_config(tokenizer: Any) -> GenerationConfig:
    """Replies end at the end of a message or of a document."""
    vocab = tokenizer.get_vocab()
    ends = [vocab[token] for token in (IM_END, END_OF_TEXT) if token in vocab]
    return GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
