"""A vision tower from published SigLIP weights, with every tensor accounted for.

    folder or Hub id --transformers SigLIP | open_clip SigLIP | our own--> configuration and tensors --> VisionTower

SigLIP 2 with fixed resolution has SigLIP's architecture and loads the same way; its NaFlex variant does not load. What
is left out is listed: the pooling head and, in files with both towers, the text tower. Any other tensor that is missing
or unknown is an error.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.utils.hub import cached_file

from infinity_mm.errors import explain
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.vision_tower import VisionTower

_OPEN_CLIP_CONFIG, _OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_LEFT_OUT = ("head.", "vision_model.head.", "text_model.", "logit_scale", "logit_bias")
_OPEN_CLIP_LEFT_OUT = ("visual.trunk.attn_pool.", "text.", "logit_scale", "logit_bias")
_OPEN_CLIP_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
"""Attention heads by the size in timm's name of the tower; no tensor shows them."""
_OPEN_CLIP_NAMES = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""timm's modules -> ours; the position table and the joint query-key-value matrix are handled apart."""


def load_vision_tower(
    name: str, *, num_layers: int | None = None, post_layernorm: bool = True
) -> VisionTower:
    """The tower in float32.

    LLaVA reads the last layer but one, before the last norm: `num_layers` keeps the first so many layers,
    `post_layernorm=False` leaves the norm out.
    """
    if cached_file(name, _OPEN_CLIP_CONFIG, _raise_exceptions_for_missing_entries=False) is not None:
        config, tensors = _from_open_clip(name)
    else:
        config, tensors = _from_transformers(name)
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise explain(
                what=f"vision_layers={num_layers}, but {name} has {config.num_hidden_layers} layers",
                where="model.parts",
                fix=f"set vision_layers between 1 and {config.num_hidden_layers}, or remove it",
            )
        dropped = tuple(f"encoder.layers.{i}." for i in range(num_layers, config.num_hidden_layers))
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(dropped)}
        config.num_hidden_layers = num_layers
    if not post_layernorm:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("post_layernorm.")}
    tower = VisionTower(config, post_layernorm=post_layernorm)
    wrong = sorted(tensors.keys() ^ tower.state_dict().keys())
    if wrong:
        raise _unaccounted(name, wrong)
    tower.load_state_dict(tensors)
    return tower


def _from_transformers(name: str) -> tuple[SiglipVisionConfig, dict[str, Tensor]]:
    """SigLIP alone or with its text tower, or the tower of a model of this package."""
    config = AutoConfig.from_pretrained(name)
    if config.model_type == "infinity_mm":
        model = InfinityMMForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
        return model.model.vision_tower.config, model.model.vision_tower.state_dict()
    if config.model_type not in ("siglip", "siglip_vision_model"):
        raise explain(
            what=f"{name} is a {config.model_type} model, not a SigLIP vision tower",
            where="model.parts.vision",
            fix="use SigLIP or SigLIP 2 with fixed resolution, such as google/siglip-so400m-patch14-384",
        )
    model, info = cast(
        tuple[Any, dict[str, Any]],
        SiglipVisionModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True),
    )
    strange = [
        key for key in (*info["missing_keys"], *info["unexpected_keys"]) if not key.startswith(_LEFT_OUT)
    ]
    if strange:
        raise _unaccounted(name, strange)
    tensors = {key.removeprefix("vision_model."): tensor for key, tensor in model.state_dict().items()}
    return model.config, {key: tensor for key, tensor in tensors.items() if not key.startswith("head.")}


def _from_open_clip(name: str) -> tuple[SiglipVisionConfig, dict[str, Tensor]]:
    """open_clip's SigLIP, whose vision tower is a timm ViT.

    The activation is the approximate GELU with which all SigLIP weights were trained; timm computes the older ones with
    the exact one.
    """
    saved = json.loads(Path(_file(name, _OPEN_CLIP_CONFIG)).read_text(encoding="utf-8"))
    vision = saved.get("model_cfg", saved)["vision_cfg"]
    timm_name = vision.get("timm_model_name", "")
    size = re.match(r"vit_([a-z0-9]+)_patch\d+_siglip", timm_name)
    if size is None or size.group(1) not in _OPEN_CLIP_HEADS:
        raise explain(
            what=f"{name} holds the tower {timm_name or 'of another architecture'!r}, not a known SigLIP",
            where="model.parts.vision",
            fix=f"use a timm SigLIP of size {', '.join(_OPEN_CLIP_HEADS)}",
        )
    tensors: dict[str, Tensor] = {}
    strange: list[str] = []
    for key, tensor in load_file(_file(name, _OPEN_CLIP_WEIGHTS)).items():
        if key.startswith(_OPEN_CLIP_LEFT_OUT):
            continue
        renamed = _from_timm(key, tensor.float())
        if renamed is None:
            strange.append(key)
        else:
            tensors |= renamed
    if strange:
        raise _unaccounted(name, strange)
    width, channels, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    side = math.isqrt(len(tensors["embeddings.position_embedding.weight"]))
    stated = vision.get("image_size")  # 384 for 27 patches of 14 px
    config = SiglipVisionConfig(
        hidden_size=width,
        num_channels=channels,
        patch_size=patch,
        image_size=stated if isinstance(stated, int) and stated // patch == side else patch * side,
        num_hidden_layers=sum(key.endswith("mlp.fc1.bias") for key in tensors),
        num_attention_heads=_OPEN_CLIP_HEADS[size.group(1)],
        intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.bias"]),
    )
    return config, tensors


def _from_timm(key: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """One of timm's tensors under our names; None for one that a SigLIP tower does not have."""
    if key == "visual.trunk.pos_embed":
        return {"embeddings.position_embedding.weight": tensor.squeeze(0)}
    found = re.fullmatch(r"visual\.trunk\.(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", key)
    if found is None:
        return None
    layer, module, kind = found.groups()
    prefix = "" if layer is None else f"encoder.layers.{layer}."
    if module == "attn.qkv" and layer is not None:
        return {
            f"{prefix}self_attn.{part}_proj.{kind}": piece
            for part, piece in zip("qkv", tensor.chunk(3), strict=True)
        }
    own = _OPEN_CLIP_NAMES.get(module)
    if own is None or (layer is None) != (module in ("patch_embed.proj", "norm")):
        return None
    return {f"{prefix}{own}.{kind}": tensor}


def _file(name: str, filename: str) -> str:
    """The path of a file in a folder or Hub repository."""
    path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise explain(
            what=f"{name} holds no {filename}",
            where="model.parts.vision",
            fix="use a repository with safetensors weights, or save the model as safetensors",
        )
    return path


def _unaccounted(name: str, tensors: list[str]) -> ValueError:
    """The error for tensors that are missing or that nobody asked for."""
    shown = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    return explain(
        what=f"{len(tensors)} tensors of {name} do not fit a SigLIP tower: {shown}",
        where="model.parts.vision",
        fix="check that the weights are complete and of the architecture that their configuration names",
    )
