"""What a step cost and where its loss came from: losses by domain and source, gradient norms, FLOPs, memory.

micro-batches, token losses --LossTally--> mean loss by domain, by source
views, tokens, sample lengths --step_flops--> operations of useful tokens, of padding
"""

from __future__ import annotations

import math
import re
import resource
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from infinity_mm.data.encode import IGNORE
from infinity_mm.data.packing import Packed
from infinity_mm.model.flops import ModelSizes, forward_flops, training_flops
from infinity_mm.training.sharding import gradient, whole

BF16_PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
}
"""Dense bfloat16 operations a second by words of the device's name, from the makers' data sheets; the first match."""

T = TypeVar("T")
Label = tuple[str, str]
"""(`domain` or `source`, its name)."""


def peak_flops(device_name: str) -> float | None:
    """Of a GPU by its name; None for others."""
    return next((peak for name, peak in BF16_PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


@dataclass
class LossTally:
    """Sums of token losses by sample; they stay on the device until the step is over."""

    losses: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    labels: list[tuple[str, str]] = field(default_factory=list)
    """(domain, source) of each sample."""
    ids: list[str] = field(default_factory=list)

    def add(self, batch: Packed, token_losses_M: Tensor) -> None:
        """One micro-batch; the losses are those of its labelled positions in reading order."""
        sizes = [len(ids) for ids in batch.ids]
        first_R1 = torch.tensor([sum(sizes[:r]) for r in range(len(sizes))])[:, None]
        number_RT = batch.sample_ids - 1 + first_R1.to(batch.sample_ids.device)
        number_M = number_RT[:, 1:][batch.labels[:, 1:] != IGNORE]
        zeros = torch.zeros(sum(sizes), device=token_losses_M.device)
        self.losses.append(zeros.index_add(0, number_M, token_losses_M.float()))
        self.counts.append(torch.bincount(number_M, minlength=sum(sizes)))
        for domains, sources, ids in zip(batch.domains, batch.sources, batch.ids, strict=True):
            self.labels += zip(domains, sources, strict=True)
            self.ids += ids

    def by_sample(self) -> dict[tuple[str, str], float]:
        """(source, id) -> mean loss of its tokens; nan for a sample without supervised ones."""
        means = (torch.cat(self.losses) / torch.cat(self.counts)).tolist()
        return {
            (source, id_): mean for (_, source), id_, mean in zip(self.labels, self.ids, means, strict=True)
        }

    def totals(self) -> dict[Label, tuple[float, int]]:
        """(sum, number) of token losses of this process, by label."""
        sums: dict[Label, tuple[float, int]] = {}
        losses, counts = torch.cat(self.losses).tolist(), torch.cat(self.counts).tolist()
        for (domain, source), loss, count in zip(self.labels, losses, counts, strict=True):
            for label in (("domain", domain), ("source", source)):
                before = sums.get(label, (0.0, 0))
                sums[label] = (before[0] + loss, before[1] + count)
        return sums


def mean_losses(totals: Iterable[dict[Label, tuple[float, int]]]) -> dict[str, dict[str, float]]:
    """{domain: {name: mean}, source: {...}} of all processes, per supervised token whatever the weighting."""
    sums: dict[Label, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for of_process in totals:
        for label, (loss, count) in of_process.items():
            sums[label][0] += loss
            sums[label][1] += count
    means: dict[str, dict[str, float]] = {"domain": {}, "source": {}}
    for (kind, name), (loss, count) in sorted(sums.items()):
        if count:
            means[kind][name] = loss / count
    return means


def everywhere(accelerator: Accelerator, own: T) -> list[T]:
    """What each process has."""
    return [own] if accelerator.num_processes == 1 else gather_object([own])


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Norm of the gradient of each part of the model that is trained."""
    grads: dict[str, list[Tensor]] = defaultdict(list)
    for group in optimizer.param_groups:
        found = (gradient(p, optimizer) for p in group["params"])
        grads[group["part"]] += [grad for grad in found if grad is not None]
    return {part: float(whole(torch.nn.utils.get_total_norm(of_part))) for part, of_part in grads.items()}


def clip(optimizer: torch.optim.Optimizer, norms: dict[str, float], largest: float) -> None:
    """Shorten the gradient to a norm of `largest`; 0 leaves it."""
    norm = math.hypot(*norms.values())
    if largest and norm > largest:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if (grad := gradient(parameter, optimizer)) is not None:
                    grad.mul_(largest / (norm + 1e-6))


def step_flops(
    sizes: ModelSizes,
    batches: Iterable[Packed],
    trained: Collection[str],
    adapters: Mapping[str, int] | None = None,
) -> tuple[int, int]:
    """(operations for tokens and images, operations for padding) of forward and backward passes.

    A sample's tokens attend to their own sample alone, so that is what counts as useful; what a kernel computes and
    masks away is nobody's use. A position of padding is counted with what the layers do to it. `adapters`: parameters
    of the adapters in each frozen part; each is multiplied with every position of its part, forward and backward.
    """
    adapters = adapters or {}
    useful = padding = 0
    for batch in batches:
        views = [] if batch.view_shapes is None else [(r, c) for _, r, c, *_ in batch.view_shapes.tolist()]
        pairs = sum(int(torch.bincount(row[row != 0]).double().square().sum()) for row in batch.sample_ids)
        useful += training_flops(
            forward_flops(
                sizes, views=views, tokens=batch.num_tokens, labelled=batch.num_labels, attended_pairs=pairs
            ),
            trained=trained,
            adapted=adapters,
        )
        positions = {
            "vision_tower": sum(sizes.vision.num_patches(r, c) for r, c in views),
            "connector": sum(sizes.num_tokens(r, c) for r, c in views),
            "language_model": batch.num_tokens,
        }
        useful += sum(6 * positions[part] * count for part, count in adapters.items())
        empty = batch.sample_ids.numel() - batch.num_tokens
        padding += training_flops(
            forward_flops(sizes, views=(), tokens=empty, labelled=0, attended_pairs=empty),
            trained=trained,
            adapted=adapters,
        )
        padding += 6 * empty * adapters.get("language_model", 0)
    return useful, padding


def memory_gb(device: torch.device) -> dict[str, float]:
    """The most memory of this process so far; on a GPU also the most of the device since the last call."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        memory["device_peak"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return memory


def samples_of(batches: Sequence[Packed]) -> list[str]:
    """Ids of all samples."""
    return [id_ for batch in batches for ids in batch.ids for id_ in ids]
