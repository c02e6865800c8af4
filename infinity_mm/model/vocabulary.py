"""New tokens of a model that has learned others: their rows in embedding and head.

tokens --grow--> a row for each --start_rows--> each the mean of the pieces of what its token means

So a language model reads `<|image_start|>` a little like "start of image" from the first step on, and loading twice
gives the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from infinity_mm.model.tokenizer import IM_END, IM_START, PAD

MEANINGS = {
    "<|image|>": "image",
    "<|image_start|>": "start of image",
    "<|image_end|>": "end of image",
    "<|slice|>": "part of the image",
    "<|row|>": "end of row",
    IM_START: "start of message",
    IM_END: "end of message",
    PAD: "padding",
}
"""Tokens that may be new, in words that every tokenizer has pieces for."""
_ROWS_MULTIPLE = 64
"""A grown vocabulary is padded to a multiple of this, which tensor cores and tensor parallelism want."""


def grow(model: Any, num_tokens: int) -> None:
    """At least one row a token; the rows that a model has beyond its tokenizer are used up first."""
    old = len(model.get_input_embeddings().weight)
    if num_tokens <= old:
        return
    rows = -(-num_tokens // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[old:] = layer.weight[:old].mean(0)  # also the padding: a row as likely as any


def start_rows(model: Any, rows: Mapping[int, Sequence[int]]) -> None:
    """Set each row of embedding and head to the mean of the rows of its pieces."""
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            for row, pieces in rows.items():
                table[row] = table[list(pieces)].mean(0)
