"""Weights, gradients and optimiser spread over processes (FSDP2, ZeRO-3), and single processes seen as the same thing.

    model --shard: every layer, then the rest--> DTensor parameters --whole--> tensors for a checkpoint

`accelerate launch --config_file configs/accelerate/fsdp2.yaml` asks for it. The sharding is torch's `fully_shard`,
called here and not by accelerate, which has it for GPUs only: like this two CPU processes test what eight GPUs run.
What zero3.py spreads is reached through the same functions.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from infinity_mm.training.zero3 import (
    Zero3,
    is_spread,
    is_zero3,
    own_weights,
    whole_parameter,
    whole_parameters,
)


def is_sharded() -> bool:
    """Whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(model: nn.Module, accelerator: Accelerator, *, bf16: bool) -> None:
    """Spread every layer that must not be split, then what is left; parameters become DTensors in place."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Inputs stay as they are: what is counted, such as the weight of the loss, is wrong once it is bfloat16, and where
    # activations meet weights the models cast by themselves.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    layers: set[str] = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole weights in every process and layers that wait for nobody, so that each process may compute what it likes.

    All processes must enter and leave. Besides the weights the hooks of FSDP and ZeRO-3 go, and come back: they would
    gather, spread and take notes for a backward pass that does not follow.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule) or is_zero3()]
    hooks = [(part, part._forward_pre_hooks, part._forward_hooks) for part in parts]
    with whole_parameters(model) if is_zero3() else nullcontext():
        for part in parts:
            if isinstance(part, FSDPModule):
                part.unshard()
            part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
        try:
            yield
        finally:
            for part, before, after in hooks:
                part._forward_pre_hooks, part._forward_hooks = before, after
                if isinstance(part, FSDPModule):
                    part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every process; all processes must ask for the same ones in the same order."""
    if is_spread(tensor):
        return whole_parameter(tensor)
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing memory."""
    if is_spread(tensor):
        return own_weights(tensor)[0]
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def set_own_part(parameter: Tensor, part: Tensor) -> None:
    """Change what this process holds of a trained parameter."""
    for place in own_weights(parameter) if is_spread(parameter) else (own_part(parameter),):
        place.copy_(part)


def gradient(parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Where a parameter's gradient is; it may be changed in place."""
    return optimizer.gradients[parameter] if isinstance(optimizer, Zero3) else parameter.grad


def whole_state(optimizer: torch.optim.Optimizer, parameter: Any) -> dict[str, Tensor]:
    """The optimiser's state of a parameter in the parameter's shape; asked for as `whole`."""
    state = {key: whole(value) for key, value in optimizer.state.get(parameter, {}).items()}
    if isinstance(optimizer, Zero3):  # flat, and the count of steps is one tensor for many parameters
        return {
            key: value.view(parameter.ds_shape) if value.dim() else value.clone()
            for key, value in state.items()
        }
    return state


def set_state(optimizer: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Tensor]) -> None:
    """Make whole tensors the optimiser's state of a parameter."""
    if not isinstance(optimizer, Zero3):
        optimizer.state[parameter] = {key: like(value, parameter) for key, value in state.items()}
        return
    for key, place in optimizer.state[parameter].items():
        value = state[key]
        own_part(place).copy_(own_part(like(value.flatten() if value.dim() else value, place)))


def num_elements(parameter: Tensor) -> int:
    """Of the whole parameter."""
    return getattr(parameter, "ds_numel", parameter.numel())


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor spread and placed as `parameter` is; a scalar stays whole."""
    if isinstance(parameter, DTensor) and tensor.dim():
        return distribute_tensor(
            tensor.to(parameter.device_mesh.device_type), parameter.device_mesh, parameter.placements
        )
    return tensor.to(parameter.device)
