"""Weights, gradients and optimiser spread over processes by DeepSpeed (ZeRO-3), one explicit step at a time.

    module, AdamW --start--> DeepSpeed's engine, and `Zero3`: an optimiser over the model's own parameters

`accelerate launch --config_file configs/accelerate/zero3.yaml` asks for it. accelerate's wrapper would step inside
`backward`, before anybody has seen a bad loss; so accelerate is told of plain processes, and the engine is called here.

DeepSpeed flattens a parameter and gives each process an equal part, the last one padded. Gradients and moments are
shown as DTensors over these parts, sharing their memory, so that norms, clipping and gathering are those of FSDP2.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from infinity_mm.errors import explain, need


def is_zero3() -> bool:
    """Whether the launcher asked for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def refuse_other_stages(environment: Mapping[str, str]) -> None:
    """Raise UserError where the launch configuration asks DeepSpeed for more or less than plain ZeRO-3."""
    taken = {
        "ZERO_STAGE": "3",
        "OFFLOAD_OPTIMIZER_DEVICE": "none",
        "OFFLOAD_PARAM_DEVICE": "none",
        "CONFIG_FILE": "none",
    }
    for name, value in taken.items():
        found = environment.get(f"ACCELERATE_DEEPSPEED_{name}", value)
        if found.lower() != value:
            raise explain(
                what=f"{name.lower()} is {found}, but the trainer drives ZeRO stage 3 without offload alone",
                where="deepspeed_config in the launch configuration of accelerate",
                fix="launch with configs/accelerate/zero3.yaml",
            )


@final
class Zero3(torch.optim.Optimizer):
    """DeepSpeed's optimiser with the model's parameters in its groups, and state and gradients beside each."""

    def __init__(
        self, groups: list[dict[str, Any]], engine: Any, inner: torch.optim.Optimizer, mesh: DeviceMesh
    ) -> None:
        super().__init__(groups, {})
        self._engine, self._inner = engine, inner
        self.gradients: dict[Tensor, Tensor] = {}
        """By parameter; the memory stays the same from step to step."""
        get = importlib.import_module("deepspeed.utils")
        stage3 = engine.optimizer
        for parameters, flat in zip(stage3.fp16_groups, stage3.fp32_partitioned_groups_flat, strict=True):
            # What AdamW would make at its first step; made now, a checkpoint can be read into it.
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            moments = {name: torch.zeros_like(flat) for name in ("exp_avg", "exp_avg_sq")}
            inner.state[flat] = {"step": step, **moments}
            for p in parameters:
                own = {name: get.safe_get_local_optimizer_state(p, name) for name in moments}
                self.state[p] = {"step": step, **{name: _spread(part, p, mesh) for name, part in own.items()}}
                self.gradients[p] = _spread(get.safe_get_local_grad(p), p, mesh)

    def step(self, closure: Any = None) -> None:
        """Move the weights by the gradients of the last backward passes."""
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner["lr"] = group["lr"]
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the next backward pass overwrite the gradients."""
        self._engine.optimizer.zero_grad()


def start(
    module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, *, bf16: bool
) -> tuple[Any, Zero3]:
    """Spread the parameters in place, before any whole model is on a GPU; the engine to call, and its optimiser."""
    try:
        deepspeed = importlib.import_module("deepspeed")
    except ImportError as error:
        raise need("deepspeed", extra="deepspeed", purpose="configs/accelerate/zero3.yaml") from error
    config = {
        "train_micro_batch_size_per_gpu": 1,  # for its statistics only
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,  # no parameter has a second, whole copy to keep in step
            "memory_efficient_linear": False,  # it would replace torch's linear for the whole process
            "reduce_bucket_size": 50_000_000,  # numbers, allocated on every process; the default is ten times that
        },
        # Weights stay float32. No module is given up to bf16 exchange: gradients are summed in float32, as by FSDP2.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "data_types": {"grad_accum_dtype": "fp32"},
        "gradient_clipping": 0.0,  # the trainer clips
    }
    # torch 2.13 says at every call that DeepSpeed uses the older of two names.
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+_tensor` is deprecated", FutureWarning)
    # For inference on CPUs; it would be compiled at the start of every first run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    # accelerate has brought the processes together.
    deepspeed.init_distributed(dist_init_required=False)
    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    module.to(accelerator.device)  # buffers
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    return engine, Zero3(groups, engine, optimizer, mesh)


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter that DeepSpeed has taken apart."""
    return hasattr(tensor, "ds_id")


def whole_parameter(parameter: Tensor) -> Tensor:
    """A copy of the whole parameter; all processes must ask for the same ones in the same order."""
    with importlib.import_module("deepspeed").zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def whole_parameters(model: nn.Module) -> AbstractContextManager[None]:
    """All parameters whole on every process while it lasts; they may not be changed."""
    return importlib.import_module("deepspeed").zero.GatheredParameters(list(model.parameters()))


def own_weights(parameter: Any) -> tuple[Tensor, Tensor]:
    """This process's part of a trained parameter, in the two places where DeepSpeed has it: for the optimiser, and
    for the next pass."""
    get = importlib.import_module("deepspeed.utils")
    return get.safe_get_local_fp32_param(parameter).detach(), parameter.ds_tensor.detach()


def _spread(part: Tensor, parameter: Any, mesh: DeviceMesh) -> Tensor:
    """A flat part as a DTensor of one dimension, without the padding."""
    numel, start = parameter.ds_numel, part.numel() * mesh.get_local_rank()
    own = part.detach()[: max(0, min(part.numel(), numel - start))]
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=torch.Size([numel]), stride=(1,))
