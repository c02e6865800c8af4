"""Loss on rows that are not trained on.

held_out.data --RowLoader, once--> rows --model without gradients--> mean loss of all processes
"""

from __future__ import annotations

from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from infinity_mm.data.loader import RowLoader
from infinity_mm.training.config import SftConfig
from infinity_mm.training.loss import Weighting, local_loss, total_weight
from infinity_mm.training.noise import EmbeddingNoise


@final
class HeldOut:
    """Measures the same rows every time; they are read once and kept in memory."""

    def __init__(self, loader: RowLoader, config: SftConfig, noise: EmbeddingNoise) -> None:
        """`loader` gives all rows to be measured as one step."""
        self._batches = next(iter(loader)).micro_batches
        self._weighting: Weighting = config.loss_weighting
        self._noise = noise

    @torch.no_grad()
    def loss(self, accelerator: Accelerator, model: nn.Module) -> float:
        """Mean loss, weighted as in training."""
        self._noise.end()
        was_training = model.training
        model.eval()
        weight = torch.tensor(total_weight(self._batches, self._weighting), dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for batch in self._batches:
            moved = batch.to(accelerator.device)
            total += local_loss(model, moved, total_weight=1.0, weighting=self._weighting).loss.double().cpu()
        model.train(was_training)
        sums = torch.stack([total, weight]).to(accelerator.device)
        summed = sums if accelerator.num_processes == 1 else accelerator.reduce(sums, reduction="sum")
        assert isinstance(summed, Tensor)
        return float(summed[0] / summed[1])
