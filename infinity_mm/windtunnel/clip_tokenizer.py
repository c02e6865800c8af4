"""The words of nano-clip: one token per known word, unknown words letter by letter.

open_clip's own tokenizer has 49,408 entries; embedding them would be four times the size of the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from infinity_mm.windtunnel import words as world_words
from infinity_mm.windtunnel.tags import VOCABULARY

_PIECES = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")
_CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789.,:'-?")
_PAD, _START, _UNKNOWN = 0, 1, 2
_CAPTION_WORDS = (
    "the", "image", "shows", "this", "is", "a", "an", "and", "of", "with", "that", "says", "on", "picture", "no",
)  # fmt: skip


@final
@dataclass(frozen=True)
class NanoTokenizer:
    """Text to rows of token ids; duck-typed like open_clip's tokenizers."""

    tokens: tuple[str, ...]
    """Known words and characters; the id of the first is 3, and the end token is the last id of all."""
    context_length: int

    @classmethod
    def of_the_world(cls, context_length: int) -> NanoTokenizer:
        """The tokenizer that knows the words of captions and tags."""
        lists = (
            world_words.SHAPES, world_words.COLOR_NAMES, world_words.ITEMS, world_words.SIGN_WORDS,
            world_words.FIELDS, world_words.NUMBER_WORDS, VOCABULARY, _CAPTION_WORDS,
        )  # fmt: skip
        known = {piece for texts in lists for text in texts for piece in _PIECES.findall(text.lower())}
        return cls((*_CHARACTERS, *sorted(known - set(_CHARACTERS))), context_length)

    @property
    def vocab_size(self) -> int:
        """Ids from 0 on; open_clip finds the end of a text as its largest id."""
        return len(self.tokens) + 4

    def __call__(self, texts: Sequence[str] | str) -> torch.Tensor:
        """Ids of shape (texts, context_length), padded; a text that is too long keeps its beginning."""
        ids = {token: i for i, token in enumerate(self.tokens, start=3)}
        rows = torch.full((1 if isinstance(texts, str) else len(texts), self.context_length), _PAD)
        for row, text in zip(rows, [texts] if isinstance(texts, str) else texts):
            found = [_START]
            for piece in _PIECES.findall(text.lower()):
                found += [ids[piece]] if piece in ids else [ids.get(letter, _UNKNOWN) for letter in piece]
            found = [*found[: self.context_length - 1], self.vocab_size - 1]
            row[: len(found)] = torch.tensor(found)
        return rows
