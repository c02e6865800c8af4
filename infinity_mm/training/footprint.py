"""What a run holds in memory, by counting: weights, gradients, optimiser, and what the backward pass keeps.

    model on the meta device --the run's own freezing or adapters--> Learned --estimate_memory--> Memory

Legend: `GB` are 10^9 bytes of one process.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from infinity_mm.data.packing import Packed
from infinity_mm.families.base import PARTS, Family, part_of
from infinity_mm.model.cross_entropy import CHUNK_LOGITS
from infinity_mm.model.flops import ModelSizes
from infinity_mm.training import lora
from infinity_mm.training.config import SftConfig
from infinity_mm.training.optim import freeze, is_hidden_matrix

_NF4_BYTES = 0.52
"""Four bits, and an eight-bit scale for every 64 weights."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What of a model a run trains, in numbers of parameters."""

    parameters: dict[str, int]
    """By part, without adapters."""
    trained: dict[str, int]
    """By part: what gets a gradient, adapters included."""
    adapters: dict[str, int]
    """By part, where there are any."""
    hidden_matrices: int
    """Of the trained ones, those that Muon keeps one moment for."""
    four_bit: int
    """Of the frozen ones, the linear layers of the language model, which `lora.base: nf4` quantises."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes of one process, in GB."""

    weights: float
    """All parts as the run holds them, and where products are in bf16 the copies of float32 weights that they use."""
    gradients: float
    optimizer: float
    activations: float | None
    """Kept for the backward pass of one micro-batch; None for a model without a formula."""
    loss: float
    """Logits of one chunk, three times."""
    total: float
    sharded_8: float
    """The same when weights, gradients and optimiser are spread over 8 processes."""
    host_rewind: float
    """In the memory of the CPU: the copy of trained weights and optimiser that `spike.action: rewind` keeps."""


def count_learned(family: Family, model: PreTrainedModel, config: SftConfig) -> Learned:
    """Freeze a copy of the model, or put adapters into it, as the run will, and count."""
    parameters: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        parameters[part_of(name, family.parts)] += parameter.numel()
    own = copy.deepcopy(model)
    if config.lora is not None:
        # The type of the frozen weights does not change the adapters, and four bits need a GPU.
        lora.add(own, family, replace(config.lora, base="float32"))
    freeze(own, config, family.parts, family.idle(model.config))
    trained: dict[str, int] = dict.fromkeys(PARTS, 0)
    adapters: dict[str, int] = {}
    hidden = 0
    for name, parameter in own.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name, family.parts)
        trained[part] += parameter.numel()
        hidden += parameter.numel() if is_hidden_matrix(name, parameter) else 0
        if ".lora_" in name:
            adapters[part] = adapters.get(part, 0) + parameter.numel()
    four_bit = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name != "lm_head"
        and part_of(f"{name}.", family.parts) == "language_model"
    )
    return Learned(
        parameters=parameters, trained=trained, adapters=adapters, hidden_matrices=hidden, four_bit=four_bit
    )


def estimate_memory(
    config: SftConfig, sizes: ModelSizes | None, vocab: int, learned: Learned, batches: Sequence[Packed]
) -> Memory:
    """Weights, gradients and optimiser exactly; activations by what one layer keeps for each of its positions."""
    bf16 = config.precision == "bf16"
    trained = sum(learned.trained.values())
    weights = _weight_bytes(config, learned)
    moments = 8 * trained - (4 * learned.hidden_matrices if config.optimizer == "muon" else 0)
    labels = config.micro_batch_rows * max(batch.num_labels for batch in batches)
    loss = 3 * 4 * min(labels * vocab, CHUNK_LOGITS)
    activations = None
    if sizes is not None:
        activations = kept_bytes(
            sizes,
            positions=config.micro_batch_rows * config.row_tokens,
            patches=config.micro_batch_rows * max(num_patches(sizes, batch) for batch in batches),
            bf16=bf16,
            checkpointing=config.gradient_checkpointing,
            tower_learns=learned.trained["vision_tower"] > 0,
        )
    gb = 1e-9
    states, passing = weights + 4 * trained + moments, (activations or 0) + loss
    return Memory(
        weights=weights * gb,
        gradients=4 * trained * gb,
        optimizer=moments * gb,
        activations=None if activations is None else activations * gb,
        loss=loss * gb,
        total=(states + passing) * gb,
        sharded_8=(states / 8 + passing) * gb,
        host_rewind=(4 * trained + moments) * gb if config.spike.action == "rewind" else 0.0,
    )


def _weight_bytes(config: SftConfig, learned: Learned) -> float:
    float32 = 6 if config.precision == "bf16" else 4  # with the copy that products in bf16 use
    whole = sum(learned.parameters.values())
    if config.lora is None:
        return float32 * whole
    added = float32 * sum(learned.trained.values())  # a trained connector is a copy beside the frozen one
    if config.lora.base == "float32":
        return float32 * whole + added
    if config.lora.base == "bfloat16":
        return 2 * whole + added
    return _NF4_BYTES * learned.four_bit + 2 * (whole - learned.four_bit) + added


def kept_bytes(
    sizes: ModelSizes, *, positions: int, patches: int, bf16: bool, checkpointing: bool, tower_learns: bool
) -> float:
    """Bytes kept for the backward pass: two norms with their inputs, queries, keys, values, attention's output, and
    what the MLP makes; with checkpointing only the input of every layer, and one layer whole."""
    width = 2 if bf16 else 4
    text, vision = sizes.text_hidden, sizes.vision.hidden
    # Norms are computed in float32 whatever the products are.
    of_text = 4 * 4 * text + width * (
        4 * text + 2 * sizes.text_query + 2 * sizes.text_key_value + 4 * sizes.text_mlp
    )
    of_patch = 4 * 2 * vision + width * (7 * vision + sizes.vision.mlp_matrices * sizes.vision.mlp)
    if checkpointing:
        text_total = positions * (4 * text * sizes.text_layers + of_text)
        vision_total = patches * (4 * vision * sizes.vision.layers + of_patch)
    else:
        text_total = positions * of_text * sizes.text_layers
        vision_total = patches * of_patch * sizes.vision.layers
    return text_total + (vision_total if tower_learns else 0)


def num_patches(sizes: ModelSizes, batch: Packed) -> int:
    """Patches of all views of a batch."""
    shapes = [] if batch.view_shapes is None else batch.view_shapes[:, 1:3].tolist()
    return sum(sizes.vision.num_patches(rows, columns) for rows, columns in shapes)
