"""The markers around image tokens, which tell the language model where each slice lies.

    <|image_start|> IMG*n(overview) [<|slice|> IMG*m ... <|row|>] per row of slices <|image_end|>

IMG is `<|image|>`, one per token that the connector emits. Overview first, slices row by row (MiniCPM-V's order);
the row marker plays the part of the newline in LLaVA-UHD (arXiv 2403.11703, section 3.3).
"""

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from infinity_mm.errors import explain
from infinity_mm.vision.slicing import SlicePlan


@runtime_checkable
class _Vocabulary(Protocol):
    """The part of a tokenizer this file needs."""

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaIds:
    """Token ids of the schema, looked up in one tokenizer."""

    image: int
    """Id of the token that image features replace."""
    image_start: int
    """Id of the marker before an image."""
    image_end: int
    """Id of the marker after an image."""
    slice: int
    """Id of the marker before each slice."""
    row: int
    """Id of the marker after each row of slices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaTokens:
    """Texts of the schema's special tokens."""

    image: str = "<|image|>"
    """Stands for an image in a prompt, and for one image token after expansion."""
    image_start: str = "<|image_start|>"
    """Before an image."""
    image_end: str = "<|image_end|>"
    """After an image."""
    slice: str = "<|slice|>"
    """Before each slice."""
    row: str = "<|row|>"
    """After each row of slices."""

    @property
    def all(self) -> tuple[str, ...]:
        """All five texts, for a tokenizer's special tokens."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def ids(self, tokenizer: _Vocabulary) -> SchemaIds:
        """Look the ids up; raises UserError when the tokenizer lacks one."""
        vocab = tokenizer.get_vocab()
        missing = [token for token in self.all if token not in vocab]
        if missing:
            raise explain(
                what=f"the tokenizer has no {', '.join(missing)}",
                where="SchemaTokens.ids",
                fix="add them with tokenizer.add_special_tokens and resize the embeddings",
            )
        return SchemaIds(**{field.name: vocab[getattr(self, field.name)] for field in fields(self)})


def image_token_ids(plan: SlicePlan, ids: SchemaIds) -> list[int]:
    """What one image becomes in `input_ids`."""
    overview, *slices = plan.views
    out = [ids.image_start, *[ids.image] * overview.num_tokens]
    if plan.grid is not None:
        columns, rows = plan.grid
        one_slice = [ids.slice, *[ids.image] * slices[0].num_tokens]
        out += (one_slice * columns + [ids.row]) * rows
    return [*out, ids.image_end]


def image_text(plan: SlicePlan, tokens: SchemaTokens) -> str:
    """What one image becomes in a prompt's text; tokenises to `image_token_ids`."""
    overview, *slices = plan.views
    out = tokens.image_start + tokens.image * overview.num_tokens
    if plan.grid is not None:
        columns, rows = plan.grid
        one_slice = tokens.slice + tokens.image * slices[0].num_tokens
        out += (one_slice * columns + tokens.row) * rows
    return out + tokens.image_end


def num_sequence_tokens(plan: SlicePlan) -> int:
    """Positions one image takes in the language model: its image tokens and all markers."""
    rows = plan.grid[1] if plan.grid is not None else 0
    return plan.num_tokens + 2 + plan.num_slices + rows
