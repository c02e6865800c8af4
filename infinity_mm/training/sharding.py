"""Weights, gradients and optimiser spread over processes (FSDP2), and single processes seen as the same thing.

    model --shard: every layer, then the rest--> DTensor parameters --whole--> tensors for a checkpoint

`accelerate launch --config_file configs/accelerate/fsdp2.yaml` asks for it. The sharding is torch's `fully_shard`,
called here and not by accelerate, which has it for GPUs only: like this two CPU processes test what eight GPUs run.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded() -> bool:
    """Whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(model: nn.Module, accelerator: Accelerator, *, bf16: bool) -> None:
    """Spread every layer that must not be split, then what is left; parameters become DTensors in place."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32 if bf16 else None
    )
    layers: set[str] = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole weights in every process and layers that wait for nobody, so that each process may compute what it likes.

    All processes must enter and leave. Besides the weights FSDP's hooks go, and come back: they would gather, spread
    and take notes for a backward pass that does not follow.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    hooks = [(part, part._forward_pre_hooks, part._forward_hooks) for part in parts]
    for part in parts:
        part.unshard()
        part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, before, after in hooks:
            part._forward_pre_hooks, part._forward_hooks = before, after
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every process; all processes must ask for the same ones in the same order."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor spread and placed as `parameter` is; a scalar stays whole."""
    if isinstance(parameter, DTensor) and tensor.dim():
        return distribute_tensor(
            tensor.to(parameter.device_mesh.device_type), parameter.device_mesh, parameter.placements
        )
    return tensor.to(parameter.device)
