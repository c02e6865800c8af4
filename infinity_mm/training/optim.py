"""Which parameter is trained how: one group per part of the model and kind of decay."""

from __future__ import annotations

import torch
from torch import nn

from infinity_mm.errors import explain
from infinity_mm.training.config import GroupConfig, SftConfig
from infinity_mm.training.muon import Muon

PARTS = {
    "vision_tower": ("model.vision_tower.",),
    "connector": ("model.connector.", "model.image_newline"),
    "language_model": ("model.language_model.", "lm_head."),
}
"""Part of the model -> prefixes of its parameters' names."""


def part_of(name: str) -> str:
    """The part a parameter belongs to; a name outside all parts is an error, so that nothing is trained by accident."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise explain(
        what=f"the parameter {name} belongs to no known part of the model",
        where="parameter groups (infinity_mm/training/optim.py)",
        fix=f"add its prefix to PARTS; known parts: {', '.join(PARTS)}",
    )


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices decay; norms, biases and embeddings (token and position tables) do not."""
    return parameter.dim() >= 2 and "embed_tokens" not in name and "position_embedding" not in name


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """What Muon makes orthogonal: matrices between hidden layers, not those at the model's input and output."""
    return parameter.dim() == 2 and not any(end in name for end in ("embed", "lm_head"))


def freeze(model: nn.Module, config: SftConfig) -> None:
    """Switch gradients off in frozen parts and on in all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _group_config(config, part_of(name)).freeze)


def trained_parts(config: SftConfig) -> list[str]:
    """Parts that are not frozen."""
    return [part for part in PARTS if not _group_config(config, part).freeze]


def build_optimizer(model: nn.Module, config: SftConfig) -> torch.optim.Optimizer:
    """AdamW or Muon over the trained parameters; each group carries `part` and its `peak_lr`."""
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = (part_of(name), is_decayed(name, parameter), is_hidden_matrix(name, parameter))
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


def _group_config(config: SftConfig, part: str) -> GroupConfig:
    return getattr(config, part)
