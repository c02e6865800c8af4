"""Choose the next token of every row, each row with its own randomness.

Gumbel-max: the token with the largest `logit / temperature + noise` is a draw from the softmax. The noise comes from
a generator of the request alone, so the other rows of a batch do not decide what a request draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from infinity_mm.engines.base import Request
from infinity_mm.engines.prompting import sampling_seed


@final
class Sampler:
    """The randomness of one request."""

    def __init__(self, request: Request, device: torch.device) -> None:
        self.temperature = request.temperature
        self._generator: torch.Generator | None = None
        if request.temperature > 0:
            self._generator = torch.Generator(device).manual_seed(sampling_seed(request))

    def scores(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """The next token is the largest of these; greedy for temperature 0."""
        if self._generator is None:
            return logits
        noise = torch.empty_like(logits).exponential_(generator=self._generator).log_().neg_()
        return noise.add_(logits, alpha=1 / self.temperature)


def next_tokens(logits: Float[Tensor, "rows vocab"], samplers: Sequence[Sampler]) -> Int[Tensor, " rows"]:
    """One token per row."""
    logits = logits.float()
    if all(sampler.temperature == 0 for sampler in samplers):
        return logits.argmax(-1)
    return torch.stack([sampler.scores(row) for sampler, row in zip(samplers, logits, strict=True)]).argmax(
        -1
    )
