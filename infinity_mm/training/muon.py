"""Muon: momentum made orthogonal for the hidden matrices, AdamW for everything else.

    gradient --momentum, Nesterov--> M --Newton-Schulz--> nearest orthogonal matrix --scaled to AdamW's size--> step

Muon by Jordan et al. (2024); the scale that lets it share AdamW's learning rates and decay by Liu et al., "Muon is
Scalable for LLM Training" (arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that drives singular values towards 1 in few steps; from the Muon reference."""
_STEPS = 5


def orthogonalise(matrices_NRC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest (semi-)orthogonal matrices, approximately: singular values end between about 0.7 and 1.2."""
    tall = matrices_NRC.shape[-2] > matrices_NRC.shape[-1]
    x = (matrices_NRC.mT if tall else matrices_NRC).to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices_NRC.dtype)


@final
class Muon(torch.optim.Optimizer):
    """Groups with `matrices: True` take Muon's step, the others AdamW's."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype`: of the Newton-Schulz steps; bfloat16 is exact enough, and fast where the rest is bfloat16 too."""
        self._dtype = dtype
        super().__init__(groups, {"betas": betas, "eps": eps, "momentum": momentum, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on all parameters that have a gradient; closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            if group["matrices"]:
                self._orthogonal_step(group, parameters)
            else:
                self._adam_step(group, parameters)

    def _orthogonal_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Matrices of one shape are made orthogonal together."""
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in parameters:
            by_shape[p.shape].append(p)
        for shape, same in by_shape.items():
            directions: list[Tensor] = []
            for p in same:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                assert p.grad is not None
                state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                directions.append(p.grad.lerp(state["momentum_buffer"], group["momentum"]))
            rotated_NRC = orthogonalise(torch.stack(directions), self._dtype)
            size = 0.2 * max(shape) ** 0.5
            for p, direction in zip(same, rotated_NRC):
                p.add_(direction, alpha=-group["lr"] * size)

    def _adam_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            assert p.grad is not None
            state["step"] += 1
            state["exp_avg"].lerp_(p.grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            step = state["step"].item()
            scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
            p.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - beta1**step))
