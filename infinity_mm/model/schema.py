"""The markers around image tokens, which tell the language model where each slice lies.

    uhd, overview first: <|image_start|> IMG*n(overview) [<|slice|> IMG*m ... <|row|>] per row of slices <|image_end|>
    uhd, overview last:  <|image_start|> [<|slice|> IMG*m ... <|row|>] per row of slices IMG*n(overview) <|image_end|>
    anyres:              IMG*n, no markers: the ends of rows are learned features, not tokens

IMG is `<|image|>`, one per token that the connector emits. Slices come row by row; overview first is MiniCPM-V's
order, last that of LLaVA-UHD, whose newline the row marker stands for (arXiv 2403.11703, section 3.3).
"""

from dataclasses import dataclass, fields
from typing import Literal, Protocol, runtime_checkable

from infinity_mm.errors import explain
from infinity_mm.vision.plans import ImagePlan


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
    image_start: int | None = None
    """Id of the marker before an image; this and the other markers are None where images are cut by `anyres`."""
    image_end: int | None = None
    """Id of the marker after an image."""
    slice: int | None = None
    """Id of the marker before each slice."""
    row: int | None = None
    """Id of the marker after each row of slices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaTokens:
    """Texts of the schema's special tokens."""

    image: str = "<|image|>"
    """Stands for an image in a prompt, and for one image token after expansion."""
    image_start: str | None = "<|image_start|>"
    """Before an image; this and the other markers are None where images are cut by `anyres`."""
    image_end: str | None = "<|image_end|>"
    """After an image."""
    slice: str | None = "<|slice|>"
    """Before each slice."""
    row: str | None = "<|row|>"
    """After each row of slices."""

    @classmethod
    def of(cls, views: Literal["uhd", "anyres"], image: str = "<|image|>") -> "SchemaTokens":
        """The schema of a way of cutting images; `anyres` has no token but `image`."""
        if views == "anyres":
            return cls(image=image, image_start=None, image_end=None, slice=None, row=None)
        return cls(image=image)

    @property
    def all(self) -> tuple[str, ...]:
        """All texts, for a tokenizer's special tokens."""
        texts = (getattr(self, field.name) for field in fields(self))
        return tuple(text for text in texts if text is not None)

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
        texts = {field.name: getattr(self, field.name) for field in fields(self)}
        return SchemaIds(**{name: vocab[text] for name, text in texts.items() if text is not None})


def image_token_ids(plan: ImagePlan, ids: SchemaIds) -> list[int]:
    """What one image becomes in `input_ids`."""
    return [id_ for name, count in _runs(plan) for id_ in [getattr(ids, name)] * count]


def image_text(plan: ImagePlan, tokens: SchemaTokens) -> str:
    """What one image becomes in a prompt's text; tokenises to `image_token_ids`."""
    return "".join(getattr(tokens, name) * count for name, count in _runs(plan))


def _runs(plan: ImagePlan) -> list[tuple[str, int]]:
    """(token of the schema, how often it is repeated), in order."""
    if plan.kind == "anyres":
        return [("image", plan.num_tokens)]
    views = plan.views if plan.overview == "first" else plan.views[::-1]
    overview, slices = [("image", views[0].num_tokens)], list[tuple[str, int]]()
    if plan.grid is not None:
        columns, rows = plan.grid
        slices = ([("slice", 1), ("image", views[1].num_tokens)] * columns + [("row", 1)]) * rows
    inside = [*overview, *slices] if plan.overview == "first" else [*slices, *overview]
    return [("image_start", 1), *inside, ("image_end", 1)]


def num_sequence_tokens(plan: ImagePlan) -> int:
    """Positions one image takes in the language model: its image tokens and all markers."""
    if plan.kind == "anyres":
        return plan.num_tokens
    rows = plan.grid[1] if plan.grid is not None else 0
    return plan.num_tokens + 2 + plan.num_slices + rows
