"""Which parameter is trained how: one group per part of the model and kind of decay."""

from __future__ import annotations

import torch
from torch import nn

from infinity_mm.families.base import PARTS, Part, Parts, part_of
from infinity_mm.training.config import GroupConfig, SftConfig
from infinity_mm.training.muon import Muon

_TABLES = ("embed_tokens", "position_embedding", "pos_embed", "cls_token", "mask_token")
"""Parts of the names of parameters that are looked up, not multiplied with."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices decay; norms, biases and embeddings (token and position tables) do not."""
    return parameter.dim() >= 2 and not any(table in name for table in _TABLES)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """What Muon makes orthogonal: matrices between hidden layers, not those at the model's input and output, and not
    the thin ones of adapters."""
    return parameter.dim() == 2 and not any(end in name for end in ("embed", "lm_head", "lora_"))


def freeze(model: nn.Module, config: SftConfig, parts: Parts, idle: tuple[str, ...] = ()) -> None:
    """Switch gradients off in frozen parts and `idle` parameters, on in all others; with adapters, peft has already
    done it."""
    if config.lora is None:
        for name, parameter in model.named_parameters():
            frozen = name.startswith(idle) or _group_config(config, part_of(name, parts)).freeze
            parameter.requires_grad_(not frozen)


def trained_parts(config: SftConfig) -> list[str]:
    """Parts that are not frozen."""
    return [part for part in PARTS if not _group_config(config, part).freeze]


def build_optimizer(model: nn.Module, config: SftConfig, parts: Parts) -> torch.optim.Optimizer:
    """AdamW or Muon over the trained parameters; each group carries `part` and its `peak_lr`."""
    groups: dict[tuple[Part, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = (part_of(name, parts), is_decayed(name, parameter), is_hidden_matrix(name, parameter))
            groups.setdefault(kind, []).append(parameter)
    described = [
        {
            "params": parameters,
            "part": part,
            "peak_lr": _group_config(config, part).lr,
            "lr": _group_config(config, part).lr,
            "weight_decay": _group_config(config, part).weight_decay if decayed else 0.0,
            "matrices": hidden,
        }
        for (part, decayed, hidden), parameters in groups.items()
    ]
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        return Muon(described, betas=config.betas, eps=config.eps, dtype=dtype)
    return torch.optim.AdamW(described, betas=config.betas, eps=config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _group_config(config: SftConfig, part: Part) -> GroupConfig:
    return getattr(config, part)
