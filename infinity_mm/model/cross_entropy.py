"""Cross entropy in chunks, so that no matrix of all labelled positions x vocabulary is ever held.

    hidden (M, E) --chunks--> head --float32--> losses (chunk), logits forgotten --backward: once more--> gradients

Legend: M labelled positions, E width, C positions of one chunk.

A vocabulary of 152,000 makes 0.6 MB of float32 logits a position, several times over in the backward pass: at 8,000
labelled positions more than the model itself. Recomputing one chunk at a time costs one more product with the head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**27
"""Most logits of one chunk: half a gigabyte in float32. Smaller chunks save little more and cast the head's weights
to bfloat16 more often."""


def token_losses(
    head: Callable[[Tensor], Tensor],
    hidden_ME: Float[Tensor, "M E"],
    labels_M: Int[Tensor, " M"],
    *,
    vocab_size: int,
    chunk_logits: int = CHUNK_LOGITS,
) -> Float[Tensor, " M"]:
    """Cross entropy in float32 of each position; `head` turns hidden states into logits."""

    def chunk_losses(hidden_CE: Tensor, labels_C: Tensor) -> Tensor:
        return functional.cross_entropy(head(hidden_CE).float(), labels_C, reduction="none")

    size = max(1, chunk_logits // vocab_size)
    if len(labels_M) <= size or not torch.is_grad_enabled():
        return torch.cat([chunk_losses(h, y) for h, y in zip(hidden_ME.split(size), labels_M.split(size))])
    return torch.cat(
        [
            checkpoint(chunk_losses, h, y, use_reentrant=False, preserve_rng_state=False)
            for h, y in zip(hidden_ME.split(size), labels_M.split(size))
        ]
    )
