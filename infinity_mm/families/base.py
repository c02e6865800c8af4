"""What the trainer knows of a model family; everything else it treats alike.

    checkpoint folder --load--> model, processor --limit--> --encoder--> rows, --trainable--> module with a loss

A family is one object in `families.FAMILIES`, found by `model_type` in the folder's config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from infinity_mm.data.encode import RowEncoder
from infinity_mm.data.regions import Notation
from infinity_mm.errors import explain
from infinity_mm.model.flops import ModelSizes

Part = Literal["vision_tower", "connector", "language_model"]
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of every vision-language model: each is trained, frozen and given its learning rate as one."""
Parts = Mapping[Part, tuple[str, ...]]
"""Part of the model -> prefixes of its parameters' names; the longest prefix that fits decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How large images may become; None keeps what the checkpoint says."""

    scale_px: int | None = None
    """Side of the square whose area one view may have."""
    max_slices: int | None = None
    """Most slices or tiles of an image, the overview not counted."""
    max_grid: int | None = None
    """Side of the largest grid of tiles an image may be cut into; 0 for none."""
    max_tiles: int | None = None
    """Cap of feature maps, in tiles."""
    min_pixels: int | None = None
    """Least area of a resized image."""
    max_pixels: int | None = None
    """Largest area of a resized image."""

    def only(self, family: str, *names: str) -> None:
        """Raise UserError where a limit is given that is none of those the family has a place for."""
        given = [f.name for f in fields(self) if f.name not in names and getattr(self, f.name) is not None]
        if given:
            raise explain(
                what=f"model.{given[0]} is given, but {family} does not limit images that way",
                where="YAML section `model`",
                fix=f"use {' or '.join(f'model.{name}' for name in names)}",
            )


@runtime_checkable
class Family(Protocol):
    """One model family."""

    @property
    def model_type(self) -> str:
        """As config.json names it."""
        ...

    @property
    def parts(self) -> Parts:
        """What belongs to which part."""
        ...

    def idle(self, config: Any) -> tuple[str, ...]:
        """Prefixes of parameters that no output depends on; they stay frozen, as no gradient ever reaches them."""
        ...

    @property
    def packs(self) -> bool:
        """Whether packed samples are proven not to see each other; if not, every row holds one sample."""
        ...

    @property
    def notation(self) -> Notation:
        """How boxes and points are written."""
        ...

    def load(self, folder: Path, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Model (float32 unless `options`, which go to `from_pretrained`, say otherwise) and processor."""
        ...

    def limit(self, model: PreTrainedModel, processor: ProcessorMixin, limits: Limits) -> None:
        """Set the limits in both, so that they are saved with the model."""
        ...

    def encoder(self, processor: ProcessorMixin) -> RowEncoder:
        """Conversations to rows; can be sent to worker processes."""
        ...

    def vision_cost(self, config: Any) -> Callable[[int, int], int]:
        """From the rows and columns of a view to the operations its vision tower does on it; can be sent to
        worker processes."""
        ...

    def sizes(self, config: Any) -> ModelSizes:
        """What decides how much the model computes; raises UserError where there is no formula for it."""
        ...

    def trainable(self, model: PreTrainedModel) -> nn.Module:
        """A module over the model's own parameters that is called like `InfinityMMForConditionalGeneration` and
        returns its output."""
        ...


def part_of(name: str, parts: Parts) -> Part:
    """The part a parameter belongs to; a name outside all parts is an error, so that nothing is trained by accident."""
    fits: list[tuple[int, Part]] = [
        (len(prefix), part) for part, all_ in parts.items() for prefix in all_ if name.startswith(prefix)
    ]
    if not fits:
        raise explain(
            what=f"the parameter {name} belongs to no known part of the model",
            where="parameter groups (infinity_mm/families/)",
            fix=f"add its prefix to the family's parts; known parts: {', '.join(parts)}",
        )
    return max(fits)[1]
