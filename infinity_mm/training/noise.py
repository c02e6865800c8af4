"""NEFTune: uniform noise on the embeddings of text while training.

token embeddings (R, T, E) --hook: + alpha / sqrt(length * E) * U(-1, 1)--> noisy embeddings

Source: Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning" (arXiv 2310.05914), algorithm 1. Its
length is that of a sequence, so here that of the packed sample. Image features replace the embeddings of their places
afterwards, so only text is noisy.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class EmbeddingNoise:
    """A hook on the token embedding; silent until it is told the batch."""

    def __init__(self, embedding: nn.Module, alpha: float) -> None:
        self._alpha = alpha
        self._lengths_RT: Tensor | None = None
        if alpha:
            embedding.register_forward_hook(self._add)

    def begin(self, sample_ids_RT: Tensor) -> None:
        """The samples of the next forward pass; noise depends on their lengths."""
        counts = torch.zeros_like(sample_ids_RT).scatter_add_(
            1, sample_ids_RT, torch.ones_like(sample_ids_RT)
        )
        self._lengths_RT = counts.gather(1, sample_ids_RT)

    def end(self) -> None:
        """No noise from here on, for example while measuring."""
        self._lengths_RT = None

    def _add(self, module: nn.Module, args: tuple[Tensor, ...], embeds_RTE: Tensor) -> Tensor | None:
        if self._lengths_RT is None:
            return None
        size_RT = self._alpha / (self._lengths_RT * embeds_RTE.shape[-1]).sqrt()
        noise_RTE = torch.empty_like(embeds_RTE).uniform_(-1, 1)
        return embeds_RTE + noise_RTE * size_RT[..., None].to(embeds_RTE.dtype)
