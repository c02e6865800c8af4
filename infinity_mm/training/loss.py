"""Token-mean loss over a whole optimiser step, whatever the number of processes and micro-steps.

The wanted loss is (sum of cross entropy over all supervised tokens of the step) / (their number N). The model returns
its local sum / N; DDP averages gradients over the processes; so each local loss is multiplied by the world size.
Accumulation is ours (accelerate is told of one micro-step), so `backward` divides by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infinity_mm.data.packing import Packed, block_mask


def local_loss(model: nn.Module, batch: Packed, *, num_labels: int) -> Tensor:
    """Summed cross entropy of one micro-batch over `num_labels`, the supervised tokens of the whole step."""
    output = model(
        input_ids=batch.input_ids,
        attention_mask=block_mask(batch.sample_ids, batch.branch_ids),
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        view_shapes=batch.view_shapes,
        labels=batch.labels,
        num_items_in_batch=torch.tensor(num_labels, device=batch.labels.device),
        use_cache=False,
    )
    return output.loss


def count_labels(batches: Sequence[Packed]) -> int:
    """Supervised tokens of several micro-batches."""
    return sum(batch.num_labels for batch in batches)
