"""Requests to any image-text model of transformers, through its own processor and `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from infinity_mm.engines.base import ImageReader, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.lru import BytesLru
from infinity_mm.engines.prompting import ChatTemplate, Refused, choice_reply, likelihood
from infinity_mm.engines.sampling import Sampler
from infinity_mm.record import ImageRef
from infinity_mm.vision.images import decode_image


@dataclass(frozen=True, kw_only=True, eq=False)
class _Filled:
    """A conversation with its template filled in."""

    text: str
    pictures: tuple[Image.Image, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt(_Filled):
    """One request, up to where the model goes on."""

    request: Request


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoringPrompt(_Filled):
    """One scoring, up to the end of the text."""

    ids: list[int]
    """What the text becomes, the last of the whole."""


@final
class AnyModel:
    """Answers batches of prompts with one model; for one thread at a time."""

    def __init__(self, model: Any, processor: Any, images: ImageReader, *, cache_bytes: int) -> None:
        """`cache_bytes` bounds decoded images; features and prefixes are not kept, models differ too much."""
        self._model = model
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._tokenizer.padding_side = "left"
        self._keeps_few_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        """Where it is not, the logits of a whole long prompt are held in memory."""
        self._images = images
        self._decoded: BytesLru[str, Image.Image] = BytesLru(cache_bytes)
        eos = model.generation_config.eos_token_id
        self._eos_ids: list[int] = (
            eos if isinstance(eos, list) else [self._tokenizer.eos_token_id if eos is None else eos]
        )
        self._template = ChatTemplate(processor)

    def prepare(self, request: Request) -> Prompt:
        """Fill in the template and decode the images; raises `Refused` or `BadImage`."""
        text, images = self._template.fill(request.turns, request.images, request.choices)
        return Prompt(request=request, text=text, pictures=self._pictures(images))

    def prepare_scoring(self, scoring: Scoring) -> ScoringPrompt:
        """The same for a scoring."""
        text, images, ids = self._template.fill_scored(scoring)
        return ScoringPrompt(ids=ids, text=text, pictures=self._pictures(images))

    def _pictures(self, images: Sequence[ImageRef]) -> tuple[Image.Image, ...]:
        return tuple(self._picture(image) for image in images)

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt; any error is the whole batch's."""
        replies: dict[int, Reply] = {}
        written = [i for i, prompt in enumerate(prompts) if not prompt.request.choices]
        if written:
            replies |= dict(zip(written, self._write([prompts[i] for i in written]), strict=True))
        for i, prompt in enumerate(prompts):
            if prompt.request.choices:
                replies[i] = self._choose(prompt)
        return [replies[i] for i in range(len(prompts))]

    def score(self, prompts: Sequence[ScoringPrompt]) -> list[Likelihood]:
        """One likelihood per prepared scoring; every prompt is computed whole."""
        totals, counts = self._logprobs([p.text for p in prompts], prompts, [p.ids for p in prompts])
        return [
            likelihood(total, num_tokens=len(prompt.ids), prompt_tokens=count - len(prompt.ids))
            for prompt, total, count in zip(prompts, totals, counts, strict=True)
        ]

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

    def _choose(self, prompt: Prompt) -> Reply:
        """All choices of a prompt, each with the token that ends it, in one forward."""
        choices = [choice + self._tokenizer.eos_token for choice in prompt.request.choices]
        ends = [self._tokenise(choice) for choice in choices]
        texts = [prompt.text + choice for choice in choices]
        totals, counts = self._logprobs(texts, [prompt] * len(choices), ends)
        return choice_reply(prompt.request.choices, totals, counts[0] - len(ends[0]), [*map(len, ends)])

    def _logprobs(
        self, texts: list[str], prompts: Sequence[_Filled], ends: Sequence[list[int]]
    ) -> tuple[list[float], list[int]]:
        """Log-probability of the ids that each text ends with, and the text's length, from one forward."""
        inputs = self._inputs(texts, prompts)
        self._check_length(inputs["input_ids"].shape[1])
        for row, ids in enumerate(ends):
            if inputs["input_ids"][row, -len(ids) :].tolist() != ids:
                raise Refused(
                    "no_span", f"{texts[row][-100:]!r} does not end with the tokens of what is scored"
                )
        keep = max(map(len, ends)) + 1  # rows are padded on the left, so that all continuations end together
        few = {"logits_to_keep": keep} if self._keeps_few_logits else {}
        logprobs = self._model(**inputs, **few).logits[:, -keep:].float().log_softmax(-1)
        totals = [
            float(logprobs[row, torch.arange(-len(ids) - 1, -1), torch.tensor(ids)].sum())
            for row, ids in enumerate(ends)
        ]
        return totals, inputs["attention_mask"].sum(1).tolist()

    def _inputs(self, texts: list[str], prompts: Sequence[_Filled]) -> dict[str, Tensor]:
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
