"""Requests to our own model: images encoded once, prompts prefilled once per image, replies decoded in a batch.

request --template, tokenizer--> ids = prefix (up to the last image) + suffix
image bytes --once per hash--> features --once per prefix--> keys and values --every call--> reply
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor

from infinity_mm.engines.base import ImageReader, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.decoding import Decoder, Row
from infinity_mm.engines.kv_cache import Prefix
from infinity_mm.engines.lru import BytesLru
from infinity_mm.engines.prompting import Refused, chat_messages, choice_reply, likelihood, split_scoring
from infinity_mm.engines.sampling import Sampler
from infinity_mm.model.schema import image_token_ids
from infinity_mm.record import ImageRef, Turn, canonical_json, digest
from infinity_mm.vision.images import decode_image
from infinity_mm.vision.plans import plan_image, view_shapes

_PREFIXES_AT_ONCE = 16
"""Prefixes, with their images, in one forward; bounds memory, not speed."""
_FIRST, _LAST = "\ue000", "\ue001"
"""Private-use characters around the number of a text part in a rendered template."""


@dataclass(eq=False, kw_only=True)
class _Picture:
    """One image on its way to features."""

    sha256: str
    alone: bool
    """Whether it is its request's only image, which some models cut differently."""
    token_ids: list[int]
    """What it becomes in the prompt."""
    pixels: tuple[Tensor, Tensor] | None
    """pixel_values and view_shapes, until it is encoded."""
    features: Tensor | None = None
    """(n, E), once it is encoded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One request or scoring, tokenised."""

    request: Request | None
    """None for a scoring, whose one choice is the scored text."""
    ids: list[int]
    prefix_length: int
    """Ids up to the end of the last image."""
    pictures: tuple[_Picture, ...]
    choices: list[list[int]]

    @property
    def prefix_key(self) -> str:
        """Prompts with equal keys share their prefill; empty without images."""
        if not self.pictures:
            return ""
        ids = canonical_json(self.ids[: self.prefix_length])
        return digest(ids, *(picture.sha256 for picture in self.pictures))


@final
class OwnModel:
    """Answers batches of prompts with one `InfinityMMForConditionalGeneration`; for one thread at a time."""

    def __init__(self, model: Any, processor: Any, images: ImageReader, *, cache_bytes: int) -> None:
        """`cache_bytes` bounds image features and prefilled prefixes, half each; 0 keeps nothing."""
        self._model = model
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._images = images
        self._view_config = processor.image_processor.view_config()
        self._pictures: BytesLru[tuple[str, bool], _Picture] = BytesLru(cache_bytes // 2)
        self._prefixes: BytesLru[str, Prefix] = BytesLru(cache_bytes // 2)
        eos = model.generation_config.eos_token_id
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self._end_id: int = self._tokenizer.eos_token_id
        self._decoder = Decoder(model, frozenset([self._end_id, *eos_ids]))
        vocab = self._tokenizer.get_vocab()
        self._special = {text: vocab[text] for text in self._tokenizer.all_special_tokens}
        self._pieces = lru_cache(maxsize=256)(self._template_pieces)

    def prepare(self, request: Request) -> Prompt:
        """Tokenise a request and read its images; raises `Refused` or `BadImage`."""
        choices = [[*self._tokenise(choice), self._end_id] for choice in request.choices]
        return self._prompt(request.turns, request, choices, room=request.max_new_tokens)

    def prepare_scoring(self, scoring: Scoring) -> Prompt:
        """The same for a scoring; its text is tokenised apart from the prompt, as in training."""
        turns, text = split_scoring(scoring)
        return self._prompt(turns, scoring, [self._tokenise(text)])

    def _prompt(
        self, turns: Sequence[Turn], asked: Request | Scoring, choices: list[list[int]], room: int = 0
    ) -> Prompt:
        messages = chat_messages(turns, asked.images)
        parts = [part for message in messages for part in message["content"]]
        images = [asked.images[part["index"]] for part in parts if part["type"] == "image"]
        pictures = tuple(self._picture(image, alone=len(images) == 1) for image in images)
        shape = tuple((m["role"], tuple(part["type"] for part in m["content"])) for m in messages)
        texts = [part["text"] for part in parts if part["type"] == "text"]
        ids, prefix_length = self._ids(self._pieces(shape), texts, pictures)
        longest = len(ids) + max([room, *map(len, choices)])
        limit = self._model.config.text_config.max_position_embeddings
        if longest > limit:
            raise Refused(
                "too_long", f"{longest} tokens of prompt and reply, the model has {limit} positions"
            )
        return Prompt(
            request=asked if isinstance(asked, Request) else None,
            ids=ids,
            prefix_length=prefix_length,
            pictures=pictures,
            choices=choices,
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt; any error is the whole batch's."""
        requests = [prompt.request for prompt in prompts if prompt.request is not None]
        rows = [
            self._row(prompt, prefix, request)
            for prompt, prefix, request in zip(prompts, self._prefilled(prompts), requests, strict=True)
        ]
        scored = [i for i, prompt in enumerate(prompts) if prompt.choices]
        written = [i for i, prompt in enumerate(prompts) if not prompt.choices]
        replies: dict[int, Reply] = {}
        for i, scores in zip(scored, self._decoder.score([rows[i] for i in scored]), strict=True):
            prompt = prompts[i]
            replies[i] = choice_reply(
                requests[i].choices, scores, len(prompt.ids), [*map(len, prompt.choices)]
            )
        for i, (ids, reason) in zip(written, self._decoder.generate([rows[i] for i in written]), strict=True):
            replies[i] = Reply(
                text=self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
                finish_reason=reason,
                prompt_tokens=len(prompts[i].ids),
                completion_tokens=len(ids),
            )
        return [replies[i] for i in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt]) -> list[Likelihood]:
        """One likelihood per prepared scoring; those about one image share its prefill."""
        rows = [self._row(*row) for row in zip(prompts, self._prefilled(prompts), strict=True)]
        return [
            likelihood(total, num_tokens=len(prompt.choices[0]), prompt_tokens=len(prompt.ids))
            for prompt, (total,) in zip(prompts, self._decoder.score(rows), strict=True)
        ]

    def _row(self, prompt: Prompt, prefix: Prefix, request: Request | None = None) -> Row:
        return Row(
            prefix=prefix,
            suffix=prompt.ids[prompt.prefix_length :],
            max_new_tokens=0 if request is None else request.max_new_tokens,
            sampler=None if request is None else Sampler(request, self._model.device),
            choices=prompt.choices,
        )

    def _prefilled(self, prompts: Sequence[Prompt]) -> list[Prefix]:
        """Keys and values of every prompt's prefix, computed for those that are not kept."""
        keys = [prompt.prefix_key for prompt in prompts]
        found: dict[str, Prefix] = {"": self._decoder.empty_prefix()}
        missing: dict[str, Prompt] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            kept = self._prefixes.get(key)
            if kept is not None:
                found[key] = kept
            elif key:
                missing.setdefault(key, prompt)
        new = list(missing.items())
        for start in range(0, len(new), _PREFIXES_AT_ONCE):
            some = new[start : start + _PREFIXES_AT_ONCE]
            features = self._features([picture for _, prompt in some for picture in prompt.pictures])
            prefixes = self._decoder.prefill(
                [prompt.ids[: prompt.prefix_length] for _, prompt in some], features
            )
            for (key, _), prefix in zip(some, prefixes, strict=True):
                found[key] = prefix
                self._prefixes.put(key, prefix, num_bytes=prefix.nbytes)
        return [found[key] for key in keys]

    def _features(self, pictures: Sequence[_Picture]) -> list[Tensor]:
        """Features of every picture, encoding those that are not encoded yet."""
        new = list({id(picture): picture for picture in pictures if picture.pixels is not None}.values())
        if new:
            pixels = [picture.pixels for picture in new if picture.pixels is not None]
            features = self._model.get_image_features(
                [values.to(self._model.device, self._model.dtype) for values, _ in pixels],
                [shapes.to(self._model.device) for _, shapes in pixels],
            ).pooler_output
            for picture, its_features in zip(new, features, strict=True):
                picture.features, picture.pixels = its_features.clone(), None
                self._pictures.put((picture.sha256, picture.alone), picture, num_bytes=its_features.nbytes)
        return [picture.features for picture in pictures if picture.features is not None]

    def _picture(self, image: ImageRef, *, alone: bool) -> _Picture:
        kept = self._pictures.get((image.sha256, alone))
        if kept is not None:
            return kept
        decoded = decode_image(self._images.read(image))
        plan = plan_image(*decoded.size, self._view_config, alone=alone)
        pixels = self._processor.image_processor.pixels([decoded], [plan])
        picture = _Picture(
            sha256=image.sha256,
            alone=alone,
            token_ids=image_token_ids(plan, self._processor.schema_ids),
            pixels=(pixels, torch.tensor(view_shapes([plan]))),
        )
        self._pictures.put((image.sha256, alone), picture, num_bytes=pixels.nbytes)
        return picture

    def _ids(
        self, pieces: Sequence[str | int], texts: Sequence[str], pictures: Sequence[_Picture]
    ) -> tuple[list[int], int]:
        """Ids of a prompt and where its last image ends. Text is never read as a special token, as in training."""
        ids: list[int] = []
        plain, prefix_length, waiting = "", 0, iter(pictures)
        for piece in pieces:
            if isinstance(piece, int):
                plain += texts[piece]
            elif piece not in self._special:
                plain += piece
            else:
                ids += self._tokenise(plain)
                plain = ""
                if piece == self._processor.image_token:
                    ids += next(waiting).token_ids
                    prefix_length = len(ids)
                else:
                    ids.append(self._special[piece])
        return ids + self._tokenise(plain), prefix_length

    def _tokenise(self, text: str) -> list[int]:
        if not text:
            return []
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def _template_pieces(self, shape: tuple[tuple[str, tuple[str, ...]], ...]) -> list[str | int]:
        """The chat template for messages of this shape, cut at special tokens; an int is the place of a text part."""
        number = 0
        messages: list[dict[str, Any]] = []
        for role, types in shape:
            parts: list[dict[str, str]] = []
            for type_ in types:
                if type_ == "image":
                    parts.append({"type": "image"})
                else:
                    parts.append({"type": "text", "text": f"{_FIRST}{number}{_LAST}"})
                    number += 1
            messages.append({"role": role, "content": parts})
        rendered = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        special = "|".join(re.escape(text) for text in sorted(self._special, key=len, reverse=True))
        cut = re.split(f"({_FIRST}[0-9]+{_LAST}|{special})", rendered)
        return [int(piece[1:-1]) if piece.startswith(_FIRST) else piece for piece in cut if piece]
