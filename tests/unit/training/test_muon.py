from __future__ import annotations

import pytest
import torch

from infinity_mm.training.muon import Muon, orthogonalise


def group(parameters: list[torch.Tensor], *, matrices: bool, weight_decay: float = 0.0) -> dict[str, object]:
    return {"params": parameters, "lr": 0.1, "weight_decay": weight_decay, "matrices": matrices}


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 32), (2, 32, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    )
    assert 0.3 < values.min() <= values.max() < 1.3
    assert 0.8 < values.mean() < 1.15


def test_vectors_take_the_step_of_adamw() -> None:
    ours = [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))]
    theirs = [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))]
    muon = Muon([group(list(ours), matrices=False, weight_decay=0.1)], betas=(0.9, 0.98), eps=1e-8)
    adamw = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    for step in range(5):
        for parameter, optimizer in ((ours[0], muon), (theirs[0], adamw)):
            parameter.grad = torch.tensor([0.5, -1.0, 2.0]) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0])


def test_a_matrix_moves_along_its_orthogonalised_gradient_by_the_scaled_rate() -> None:
    matrix = torch.nn.Parameter(torch.zeros(4, 16))
    gradient = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    matrix.grad = gradient.clone()
    Muon([group([matrix], matrices=True)], betas=(0.9, 0.98), eps=1e-8).step()
    torch.testing.assert_close(matrix.data, -0.1 * 0.2 * 16**0.5 * orthogonalise(gradient.unsqueeze(0))[0])


def test_matrices_of_one_shape_do_not_influence_each_other() -> None:
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(4, 4, generator=generator) for _ in range(2)]
    alone: list[torch.Tensor] = []
    for gradient in gradients:
        p = torch.nn.Parameter(torch.zeros(4, 4))
        p.grad = gradient.clone()
        Muon([group([p], matrices=True)], betas=(0.9, 0.98), eps=1e-8).step()
        alone.append(p.data)
    pair = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    for p, gradient in zip(pair, gradients):
        p.grad = gradient.clone()
    Muon([group(list(pair), matrices=True)], betas=(0.9, 0.98), eps=1e-8).step()
    torch.testing.assert_close([p.data for p in pair], alone)
