"""Requests to any image-text model of transformers, through its own processor and `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from infinity_mm.engines.base import ImageReader, Reply, Request
from infinity_mm.engines.lru import BytesLru
from infinity_mm.engines.prompting import ChatTemplate, Refused, choice_reply
from infinity_mm.engines.sampling import Sampler
from infinity_mm.record import ImageRef
from infinity_mm.vision.images import decode_image


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One request, with its template filled in."""

    request: Request
    text: str
    pictures: tuple[Image.Image, ...]


@final
class AnyModel:
    """Answers batches of prompts with one model; for one thread at a time."""

    def __init__(self, model: Any, processor: Any, images: ImageReader, *, cache_bytes: int) -> None:
        """`cache_bytes` bounds decoded images; features and prefixes are not kept, models differ too much."""
        self._model = model
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._tokenizer.padding_side = "left"
        self._images = images
        self._decoded: BytesLru[str, Image.Image] = BytesLru(cache_bytes)
        eos = model.generation_config.eos_token_id
        self._eos_ids: list[int] = (
            eos if isinstance(eos, list) else [self._tokenizer.eos_token_id if eos is None else eos]
        )
        self._template = ChatTemplate(processor)

    def prepare(self, request: Request) -> Prompt:
        """Fill in the template and decode the images; raises `Refused` or `BadImage`."""
        text, images = self._template.fill(request)
        pictures = tuple(self._picture(image) for image in images)
        return Prompt(request=request, text=text, pictures=pictures)

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt; any error is the whole batch's."""
        replies: dict[int, Reply] = {}
        written = [i for i, prompt in enumerate(prompts) if not prompt.request.choices]
        if written:
            replies |= dict(zip(written, self._write([prompts[i] for i in written]), strict=True))
        for i, prompt in enumerate(prompts):
            if prompt.request.choices:
                replies[i] = self._score(prompt)
        return [replies[i] for i in range(len(prompts))]

    def _write(self, prompts: Sequence[Prompt]) -> list[Reply]:
        inputs = self._inputs([prompt.text for prompt in prompts], prompts)
        steps = max(prompt.request.max_new_tokens for prompt in prompts)
        self._check_length(inputs["input_ids"].shape[1] + steps)
        samplers = [Sampler(prompt.request, self._model.device) for prompt in prompts]
        out = self._model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._eos_ids,
            pad_token_id=self._eos_ids[0]
            if self._tokenizer.pad_token_id is None
            else self._tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([_GumbelNoise(samplers)]),
        )
        new_ids = out[:, inputs["input_ids"].shape[1] :].tolist()
        counts = inputs["attention_mask"].sum(1).tolist()
        return [self._reply(*row) for row in zip(prompts, new_ids, counts, strict=True)]

    def _reply(self, prompt: Prompt, new_ids: list[int], prompt_tokens: int) -> Reply:
        ids = new_ids[: prompt.request.max_new_tokens]
        ends = [i for i, id_ in enumerate(ids) if id_ in self._eos_ids]
        ids = ids[: ends[0]] if ends else ids
        return Reply(
            text=self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
            finish_reason="stop" if ends else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(ids),
        )

    def _score(self, prompt: Prompt) -> Reply:
        """All choices of a prompt as full texts in one forward; the last ids of each row are the choice."""
        choices = prompt.request.choices
        ends = [self._tokenise(choice + self._tokenizer.eos_token) for choice in choices]
        inputs = self._inputs(
            [prompt.text + choice + self._tokenizer.eos_token for choice in choices], [prompt] * len(choices)
        )
        self._check_length(inputs["input_ids"].shape[1])
        logprobs = self._model(**inputs).logits.float().log_softmax(-1)
        scores = []
        for row, ids in enumerate(ends):
            if inputs["input_ids"][row, -len(ids) :].tolist() != ids:
                raise Refused(
                    "bad_choice", f"{choices[row]!r} melts into the end of the prompt in this tokenizer"
                )
            at = torch.arange(-len(ids) - 1, -1)
            scores.append(float(logprobs[row, at, torch.tensor(ids)].sum()))
        prompt_tokens = int(inputs["attention_mask"][0].sum()) - len(ends[0])
        return choice_reply(choices, scores, prompt_tokens, [*map(len, ends)])

    def _inputs(self, texts: list[str], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        pictures = [list(prompt.pictures) for prompt in prompts]
        images = {"images": pictures} if any(pictures) else {}
        out = self._processor(text=texts, padding=True, return_tensors="pt", **images)
        return dict(out.to(self._model.device, self._model.dtype))

    def _check_length(self, length: int) -> None:
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise Refused("too_long", f"{length} tokens of prompt and reply, the model has {limit} positions")

    def _tokenise(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _picture(self, image: ImageRef) -> Image.Image:
        kept = self._decoded.get(image.sha256)
        if kept is None:
            kept = decode_image(self._images.read(image))
            self._decoded.put(image.sha256, kept, num_bytes=3 * kept.width * kept.height)
        return kept


@final
class _GumbelNoise(LogitsProcessor):
    """Lets greedy `generate` draw every row from its own generator."""

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self._samplers = samplers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.stack(
            [sampler.scores(row) for sampler, row in zip(self._samplers, scores.float(), strict=True)]
        )
