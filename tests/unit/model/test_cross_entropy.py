"""Cross entropy in chunks: the same numbers, and no large matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from infinity_mm.model.cross_entropy import token_losses

VOCAB, WIDTH, POSITIONS = 50, 8, 13


def drawn() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    return nn.Linear(WIDTH, VOCAB, bias=False), hidden, torch.randint(0, VOCAB, (POSITIONS,))


class Largest(TorchDispatchMode):
    """The most elements any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("positions_per_chunk", [1, 4, 13, 99])
def test_losses_and_gradients_are_those_of_one_go(positions_per_chunk: int) -> None:
    head, hidden, labels = drawn()
    weights = torch.linspace(0.1, 1.0, POSITIONS)
    wanted = functional.cross_entropy(head(hidden), labels, reduction="none")
    wanted_grads = torch.autograd.grad((wanted * weights).sum(), [hidden, head.weight])
    losses = token_losses(
        head, hidden, labels, vocab_size=VOCAB, chunk_logits=positions_per_chunk * VOCAB + 7
    )
    grads = torch.autograd.grad((losses * weights).sum(), [hidden, head.weight])
    assert (losses - wanted).abs().max() < 1e-6
    for grad, wanted_grad in zip(grads, wanted_grads):
        assert (grad - wanted_grad).abs().max() < 1e-6


def test_no_tensor_holds_the_logits_of_more_than_one_chunk() -> None:
    head, hidden, labels = drawn()
    with Largest() as seen:
        token_losses(head, hidden, labels, vocab_size=VOCAB, chunk_logits=2 * VOCAB).sum().backward()
    # The head's own gradient is the largest.
    assert seen.elements == VOCAB * WIDTH < POSITIONS * VOCAB


def test_without_labels_there_is_an_empty_result_that_can_be_differentiated() -> None:
    head, hidden, labels = drawn()
    losses = token_losses(head, hidden[:0], labels[:0], vocab_size=VOCAB)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert head.weight.grad is not None
    assert float(head.weight.grad.abs().max()) == 0.0
