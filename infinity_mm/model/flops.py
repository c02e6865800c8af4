"""Floating-point operations of the model as formulas, so that a plan for a million samples needs no tensor.

    configuration --model_sizes--> sizes; views, tokens, attended pairs --forward_flops--> Flops --training_flops--> int

A multiplication with its addition counts 2. Matrix products only: norms, activations, softmax and positions are below
one percent. The formulas equal `torch.utils.flop_counter` operation for operation (tests/unit/model/test_flops.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from transformers import PreTrainedConfig

from infinity_mm.errors import explain
from infinity_mm.model.configuration import InfinityMMConfig

GATED = frozenset(
    {
        "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text", "llama", "mistral", "gemma", "gemma2", "gemma3_text",
        "olmo2", "smollm3",
    }
)  # fmt: skip
"""`model_type`s of dense decoders with gated MLPs, which the formulas describe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionSizes:
    """The widths and depths of a vision tower."""

    patch_values: int
    """Values of one patch: 3 times the patch side squared, more where a patch spans frames."""
    hidden: int
    layers: int
    """Those whose output is used."""
    mlp: int
    """Hidden width of the MLPs."""
    mlp_matrices: int = 2
    """Matrices of an MLP: 2, or 3 where it is gated."""
    unit_patches: int = 1
    """Patches of one row and column of a view: 1, or those of a whole tile where views are counted in tiles."""
    class_tokens: int = 0
    """Positions of a view that are no patches."""
    window: int | None = None
    """Side of the windows, in patches, that most layers attend in; None: all attend to the whole view."""
    full_layers: int = 0
    """Where there are windows: layers that attend to the whole view."""

    def num_patches(self, rows: int, columns: int) -> int:
        """Patches of a view."""
        return rows * columns * self.unit_patches


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """The widths and depths that decide how much a model computes."""

    vision: VisionSizes
    merge: int
    """Side of the square of patches that becomes one token; 1 where nothing is merged."""
    connector_hidden: int
    """Width of the connector's hidden layer or attention; 0 where it is a single matrix."""
    connector_queries: int = 0
    """Learned queries a view; 0 for connectors that have none."""
    connectors: int = 1
    """Connectors of these sizes that see every view."""
    text_hidden: int
    """Width of the language model."""
    text_layers: int
    """Layers of the language model."""
    text_mlp: int
    """Hidden width of the language model's MLPs, which are gated: three matrices."""
    text_query: int
    """Width of all query heads together."""
    text_key_value: int
    """Width of all key heads together, which is also that of the value heads."""
    vocab: int
    """Rows of the head."""

    def num_tokens(self, rows: int, columns: int) -> int:
        """Tokens that one view of `rows` x `columns` patches becomes."""
        return self.connector_queries or self.vision.num_patches(rows, columns) // self.merge**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Operations of one forward pass, by part."""

    vision: int = 0
    """Vision tower."""
    connector: int = 0
    """Connector."""
    language_model: int = 0
    """Layers of the language model."""
    head: int = 0
    """Language-modelling head."""
    vision_attention: int = 0
    """The share of `vision` that multiplies activations by activations."""
    connector_attention: int = 0
    """The share of `connector` that multiplies activations by activations."""
    language_attention: int = 0
    """The share of `language_model` that multiplies activations by activations."""

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return self.vision + self.connector + self.language_model + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def model_sizes(config: InfinityMMConfig) -> ModelSizes:
    """The sizes of a configuration of ours; raises UserError for a language model whose formula is not known."""
    text = config.text_config
    assert isinstance(text, PreTrainedConfig)
    shape = config.connector_shape()
    return ModelSizes(
        vision=vision_sizes(config),
        merge=shape.merge,
        connector_hidden=config.connector_hidden or text.hidden_size,
        connector_queries=shape.queries or 0,
        **text_sizes(text),
    )


def vision_sizes(config: InfinityMMConfig) -> VisionSizes:
    """Those of its tower."""
    vision = config.vision_config
    assert isinstance(vision, PreTrainedConfig)
    return VisionSizes(
        patch_values=vision.num_channels * vision.patch_size**2,
        hidden=vision.hidden_size,
        layers=vision.num_hidden_layers,
        mlp=vision.intermediate_size,
    )


def text_sizes(text: PreTrainedConfig) -> dict[str, int]:
    """The fields of `ModelSizes` about a language model; raises UserError for one whose formula is not known."""
    if text.model_type not in GATED:
        raise explain(
            what=f"no formula for a {text.model_type} language model",
            where="model_sizes",
            fix=f"use one of {', '.join(sorted(GATED))}, or write the formula for it in model/flops.py",
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return {
        "text_hidden": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_mlp": text.intermediate_size,
        "text_query": text.num_attention_heads * head_dim,
        "text_key_value": kv_heads * head_dim,
        "vocab": text.vocab_size,
    }


def vision_flops(sizes: VisionSizes, rows: int, columns: int) -> int:
    """The vision tower on one view of `rows` x `columns` units."""
    patches, d = sizes.num_patches(rows, columns), sizes.hidden
    n = patches + sizes.class_tokens
    weights = 4 * d * d + sizes.mlp_matrices * d * sizes.mlp
    return (
        2 * patches * sizes.patch_values * d
        + sizes.layers * 2 * n * weights
        + _vision_attention(sizes, rows, columns)
    )


def _vision_attention(sizes: VisionSizes, rows: int, columns: int) -> int:
    """The products of queries with keys and of weights with values, on one view."""
    n = sizes.num_patches(rows, columns) + sizes.class_tokens
    whole = sizes.layers if sizes.window is None else sizes.full_layers
    pairs = whole * n * n
    if sizes.window is not None:
        in_windows = _squares(rows, sizes.window) * _squares(columns, sizes.window)
        pairs += (sizes.layers - whole) * in_windows
    return 4 * pairs * sizes.hidden


def _squares(side: int, window: int) -> int:
    """Sum of the squares of the parts into which windows cut a side."""
    return side // window * window**2 + (side % window) ** 2


def forward_flops(
    sizes: ModelSizes,
    *,
    views: Sequence[tuple[int, int]],
    tokens: int,
    labelled: int,
    attended_pairs: int,
) -> Flops:
    """One forward pass over any number of samples.

    `views` are (rows, columns) in patches, or in tiles. `tokens` are all positions the language model computes: text,
    markers and image tokens, and padding if that is to count. `labelled` are the positions whose logits are computed.
    `attended_pairs` are pairs of query and key: the sum of squared sample lengths for packed rows (a causal kernel
    saves half of it, which by custom is not subtracted), rows times row length squared for padded ones.
    """
    grids: dict[tuple[int, int], int] = {}
    for grid in views:
        grids[grid] = grids.get(grid, 0) + 1
    parts = [(count, rows, columns) for (rows, columns), count in grids.items()]
    d, q = sizes.text_hidden, sizes.text_query
    weights = 2 * d * q + 2 * d * sizes.text_key_value + 3 * d * sizes.text_mlp
    language_attention = 4 * attended_pairs * q * sizes.text_layers
    return Flops(
        vision=sum(count * vision_flops(sizes.vision, rows, columns) for count, rows, columns in parts),
        connector=sum(
            count * _connector_flops(sizes, sizes.vision.num_patches(rows, columns))
            for count, rows, columns in parts
        ),
        language_model=2 * tokens * weights * sizes.text_layers + language_attention,
        head=2 * labelled * d * sizes.vocab,
        vision_attention=sum(
            count * _vision_attention(sizes.vision, rows, columns) for count, rows, columns in parts
        ),
        connector_attention=sum(
            count * _connector_attention(sizes, sizes.vision.num_patches(rows, columns))
            for count, rows, columns in parts
        ),
        language_attention=language_attention,
    )


def training_flops(flops: Flops, *, trained: Collection[str], adapted: Collection[str] = ()) -> int:
    """Forward and backward pass; `trained` holds names out of vision_tower, connector, language_model, `adapted` those
    of frozen parts with adapters, which pass gradients on; the adapters' own work is not counted.

    A product with a trained matrix costs three times its forward pass: the output, the gradient of the input, the
    gradient of the matrix. A frozen part that passes gradients on to a trained one before it costs two, or three where
    it multiplies activations; a frozen part before all trained ones costs one. The input gradient of the first
    trained matrix, which nobody needs, is counted too. Recomputation by gradient checkpointing is not counted.
    """
    unknown = {*trained, *adapted} - {"vision_tower", "connector", "language_model"}
    if unknown:
        raise explain(
            what=f"the model has no part called {min(unknown)!r}",
            where="training_flops",
            fix="use vision_tower, connector, language_model",
        )
    total, gradient_passes = 0, False
    for name, forward, attention in (
        ("vision_tower", flops.vision, flops.vision_attention),
        ("connector", flops.connector, flops.connector_attention),
        ("language_model", flops.language_model + flops.head, flops.language_attention),
    ):
        if name in trained:
            gradient_passes = True
            total += 3 * forward
        elif gradient_passes or name in adapted:
            gradient_passes = True
            total += 2 * forward + attention
        else:
            total += forward
    return total


def _connector_flops(sizes: ModelSizes, num_patches: int) -> int:
    """The connectors on one view; queries count as projected for each view, though a batch does it once."""
    n, h, q = num_patches, sizes.connector_hidden, sizes.connector_queries
    if q:
        keys_and_values = n * sizes.vision.hidden * h + 2 * n * h * h
        queries = 2 * q * h * h + q * h * sizes.text_hidden
        return 2 * (keys_and_values + queries) + _connector_attention(sizes, n)
    merged = sizes.merge**2 * sizes.vision.hidden
    matrices = merged * h + h * sizes.text_hidden if h else merged * sizes.text_hidden
    return sizes.connectors * 2 * (n // sizes.merge**2) * matrices


def _connector_attention(sizes: ModelSizes, num_patches: int) -> int:
    """The products of queries with keys and of weights with values, on one view."""
    return 4 * sizes.connector_queries * num_patches * sizes.connector_hidden
