"""A conversation through a family's own chat template, to token ids and labels.

    messages --chat template, text parts as markers--> rendered --split at markers--> what the template writes, texts
    --special tokens to ids, runs of plain text to the tokenizer--> input_ids, labels

The template is rendered with markers in place of the texts. So what it writes is told from what people wrote: text is
never read as a special token, whatever it contains, and an answer's place is known without searching for it. A run of
plain text reaches across template and message, so the ids are those of the stock processor.

One deliberate choice, as for our own model: an answer is tokenised apart from the generation prompt before it, as when
a server is asked. It is labelled from there to the special token that ends it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from transformers import ProcessorMixin

from infinity_mm.data.conversation import IMAGE_PLACEHOLDER, Message
from infinity_mm.data.encode import IGNORE
from infinity_mm.errors import explain

_MARKER = re.compile("\ue000(\\d+)\ue001")


@dataclass
class _Runs:
    """Ids and plain text in order; neighbouring plain texts with the same label are one run."""

    pieces: list[str | int] = field(default_factory=list)
    labelled: list[bool] = field(default_factory=list)

    def add(self, piece: str | int, labelled: bool) -> None:
        if isinstance(piece, str):
            if not piece:
                return
            if self.pieces and isinstance(last := self.pieces[-1], str) and self.labelled[-1] == labelled:
                self.pieces[-1] = last + piece
                return
        self.pieces.append(piece)
        self.labelled.append(labelled)


class ChatTemplate:
    """The chat template of one processor."""

    def __init__(self, processor: ProcessorMixin, image_token: str) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.image_token = image_token
        self.ids = {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items()}
        self._special = re.compile(
            "|".join(re.escape(token) for token in sorted(self.ids, key=len, reverse=True))
        )
        if image_token not in self.ids:
            raise explain(
                what=f"{image_token} is not a token of its own in the tokenizer",
                where=f"{type(processor).__name__}",
                fix="use a checkpoint whose tokenizer and processor belong together",
            )
        asked = [Message("user", "a")]
        with_prompt = self._render(asked, add_generation_prompt=True)
        self.prompt = with_prompt.removeprefix(self._render(asked))
        """What the template writes after a question, for the model to go on from."""
        bos = self.tokenizer("").input_ids[:1]
        is_written = bos and with_prompt.startswith(self.tokenizer.convert_ids_to_tokens(bos[0]))
        self.prefix: list[int] = [] if is_written else bos
        """Ids that the tokenizer puts before every text by itself."""
        self.encode([*asked, Message("assistant", "b")], [])  # a template that cannot be read fails here

    def encode(self, messages: Sequence[Message], images: Sequence[str]) -> tuple[list[int], list[int]]:
        """(input_ids, labels); `images` holds what the image token becomes, image by image."""
        texts = [text for m in messages for text in _parts(m) if text is not None]
        answers = _answers(messages)
        rendered = _MARKER.split(self._render(messages))
        literals, markers = rendered[::2], [int(number) for number in rendered[1::2]]
        if markers != list(range(len(texts))):
            raise self._unreadable(f"it writes the texts 0..{len(texts) - 1} as {markers}")
        waiting = iter(images)
        runs = _Runs(pieces=list(self.prefix), labelled=[False] * len(self.prefix))
        for number, literal in enumerate(literals):
            if number - 1 in answers:  # the text before this literal is an answer
                end = self._special.search(literal)
                if end is None:
                    raise self._unreadable("no special token ends an answer")
                self._write(runs, literal[: end.end()], True, waiting)
                literal = literal[end.end() :]
            if number in answers:
                before, own = self._split_header(literal)
                self._write(runs, before, False, waiting)
                self._write(runs, own, True, waiting)
            else:
                self._write(runs, literal, False, waiting)
            if number < len(texts):
                runs.add(texts[number], number in answers)
        if next(waiting, None) is not None:
            raise self._unreadable(
                f"it does not write {self.image_token} once for each of {len(images)} images"
            )
        return self._tokenise(runs)

    def image_ids(self, image: str) -> list[int]:
        """Ids of what one image becomes."""
        runs = _Runs()
        self._write(runs, self.image_token, False, iter([image]))
        return self._tokenise(runs)[0]

    @property
    def source(self) -> str:
        """The template itself."""
        return str(self.processor.chat_template or self.tokenizer.chat_template)

    def _split_header(self, literal: str) -> tuple[str, str]:
        """What stands before an answer: (up to the end of the generation prompt, what the model writes itself)."""
        at = literal.rfind(self.prompt)
        if at >= 0:
            at += len(self.prompt)
            return literal[:at], literal[at:]
        stem = self.prompt.rstrip()
        at = literal.rfind(stem)
        if at < 0 or not stem or literal[at + len(stem) :].strip():
            raise self._unreadable(
                f"before an answer it writes {literal!r}, which does not hold its generation prompt {self.prompt!r}"
            )
        # LLaVA-OneVision's template has a blank more before an answer than in the prompt; a server sends the prompt.
        return literal[:at] + self.prompt, ""

    def _write(self, runs: _Runs, literal: str, labelled: bool, images: Any) -> None:
        """What the template wrote, with each image token replaced by the next image's text."""
        start = 0
        for found in self._special.finditer(literal):
            runs.add(literal[start : found.start()], labelled)
            start = found.end()
            if found[0] != self.image_token:
                runs.add(self.ids[found[0]], labelled)
                continue
            image = next(images, None)
            if image is None:
                raise self._unreadable(f"it writes more {self.image_token} than there are images")
            at = 0
            for token in self._special.finditer(image):
                runs.add(image[at : token.start()], labelled)
                runs.add(self.ids[token[0]], labelled)
                at = token.end()
            runs.add(image[at:], labelled)
        runs.add(literal[start:], labelled)

    def _tokenise(self, runs: _Runs) -> tuple[list[int], list[int]]:
        texts = [piece for piece in runs.pieces if isinstance(piece, str)]
        encoded = (
            self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True) if texts else None
        )
        tokenised = iter(encoded.input_ids if encoded is not None else [])
        input_ids: list[int] = []
        labels: list[int] = []
        for piece, labelled in zip(runs.pieces, runs.labelled):
            ids = next(tokenised) if isinstance(piece, str) else [piece]
            input_ids += ids
            labels += ids if labelled else [IGNORE] * len(ids)
        return input_ids, labels

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        content: list[dict[str, Any]] = []
        number = 0
        for message in messages:
            parts: list[dict[str, str]] = []
            for text in _parts(message):
                if text is None:
                    parts.append({"type": "image"})
                else:
                    parts.append({"type": "text", "text": f"\ue000{number}\ue001"})
                    number += 1
            content.append({"role": message.role, "content": parts})
        # SmolVLM's own method adds settings for videos, and a warning about them, to every call.
        rendered = ProcessorMixin.apply_chat_template(
            self.processor, content, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return cast(str, rendered)

    def _unreadable(self, why: str) -> ValueError:
        return explain(
            what=f"the chat template cannot be trained with: {why}",
            where=f"chat_template of {type(self.processor).__name__}",
            fix="use a template that writes every text and image once and in order, and an answer right after its "
            "generation prompt",
        )


def _parts(message: Message) -> list[str | None]:
    """Texts, and None for each image, in order. Empty texts beside images are left out."""
    pieces = message.text.split(IMAGE_PLACEHOLDER) if message.role == "user" else [message.text]
    parts: list[str | None] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(None)
        if piece or len(pieces) == 1:
            parts.append(piece)
    return parts


def _answers(messages: Sequence[Message]) -> set[int]:
    """Numbers of the texts that are answers."""
    numbers: set[int] = set()
    count = 0
    for message in messages:
        if message.role == "assistant":
            numbers.add(count)
        count += sum(text is not None for text in _parts(message))
    return numbers
