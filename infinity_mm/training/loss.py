"""The loss of a whole optimiser step, whatever the number of processes and micro-steps.

The wanted loss is (sum of weight * cross entropy over all supervised tokens of the step) / (sum of the weights W). The
model returns its local sum / W; DDP averages gradients over the processes; so each local loss is multiplied by the
world size. Accumulation is ours (accelerate is told of one micro-step), so `backward` divides by nothing.

With all weights 1 a dense caption of 60 tokens counts sixty times what the one digit of a judge counts. The square root
(InternVL 2.5, arXiv 2412.05271, section 3.3) stands between that and a mean per answer; `sample` is a mean per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from infinity_mm.data.encode import IGNORE
from infinity_mm.data.packing import Packed

Weighting = Literal["token", "square_root", "sample"]


class LocalLoss(NamedTuple):
    """The loss of one micro-batch."""

    loss: Tensor
    """Its share of the step's loss."""
    token_losses: Tensor
    """Cross entropy of each supervised token in reading order (M), detached."""


def local_loss(
    model: nn.Module, batch: Packed, *, total_weight: float, weighting: Weighting = "token"
) -> LocalLoss:
    """Weighted cross entropy of one micro-batch over `total_weight`, that of the whole step."""
    output = model(
        input_ids=batch.input_ids,
        sample_ids=batch.sample_ids,
        branch_ids=batch.branch_ids,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        view_shapes=batch.view_shapes,
        labels=batch.labels,
        loss_weights=label_weights(batch.labels, batch.sample_ids, weighting)
        if weighting != "token"
        else None,
        num_items_in_batch=torch.tensor(total_weight, device=batch.labels.device),
        use_cache=False,
    )
    return LocalLoss(output.loss, output.token_losses)


def label_weights(labels_RT: Tensor, sample_ids_RT: Tensor, weighting: Weighting) -> Tensor:
    """Weight of each position in the loss, (R, T) float32; 0 without a label.

    `token`: 1. `square_root`: 1 / sqrt(number of tokens of its answer), so that an answer of n tokens weighs sqrt(n).
    An answer is a run of labels: between two answers there is always a position without one. `sample`: 1 / number of
    labels of its sample, so that every sample that has labels weighs 1.
    """
    labelled_RT = labels_RT != IGNORE
    labelled_RT[:, 0] = False  # nothing predicts the first position
    if weighting == "token":
        return labelled_RT.float()
    if weighting == "sample":
        num_samples = int(sample_ids_RT.max()) + 1
        rows_R1 = torch.arange(len(labels_RT), device=labels_RT.device)[:, None]
        of_sample_RT = (rows_R1 * num_samples + sample_ids_RT)[labelled_RT]
        counts_S = torch.bincount(of_sample_RT)
        return torch.zeros(labels_RT.shape, device=labels_RT.device).masked_scatter(
            labelled_RT, counts_S[of_sample_RT].float().reciprocal()
        )
    starts_RT = labelled_RT & ~torch.nn.functional.pad(labelled_RT, (1, 0))[:, :-1]
    answer_N = starts_RT.flatten().cumsum(0) * labelled_RT.flatten()  # 0 on positions without a label
    length_A = torch.bincount(answer_N, minlength=1)
    return torch.where(labelled_RT, length_A[answer_N].view_as(labels_RT).float().rsqrt(), 0.0)


def total_weight(batches: Sequence[Packed], weighting: Weighting) -> float:
    """Sum of the weights of several micro-batches."""
    if weighting == "token":
        return float(count_labels(batches))
    weights = [label_weights(batch.labels, batch.sample_ids, weighting) for batch in batches]
    return sum(float(weights_RT.sum(dtype=torch.float64)) for weights_RT in weights)


def count_labels(batches: Sequence[Packed]) -> int:
    """Supervised tokens of several micro-batches."""
    return sum(batch.num_labels for batch in batches)
