"""vLLM in this process: `AsyncLLM`, whose core computes in a process of its own on this worker's GPUs.

    request --template, decoded images--> AsyncLLM (scheduler, prefix cache) --> reply
    Ray actor (executor.gpus_per_worker) owns spec.open --Guarded--> restart and bisect when the core dies

No server and no wire between: each worker has its engine, and the journeys of one image stay in one worker, so what
the calls about it share is prefilled once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast, final

from PIL import Image

from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    EngineDead,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
)
from infinity_mm.engines.guard import Guarded
from infinity_mm.engines.lru import BytesLru
from infinity_mm.engines.model_files import model_folder, model_hash
from infinity_mm.engines.openai_wire import split_thinking
from infinity_mm.engines.prompting import (
    ChatTemplate,
    Refused,
    check_shape,
    choice_reply,
    likelihood,
    sampling_seed,
)
from infinity_mm.engines.vllm_choices import Ids, choice_logprobs, forks
from infinity_mm.errors import explain
from infinity_mm.record import ImageRef, canonical_json
from infinity_mm.vision.images import BadImage, decode_image

A = TypeVar("A", Reply, Likelihood)
_MAX_BRANCHES = 128
"""Tokens that vLLM compares in one place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmSpec:
    """Which model vLLM loads, and how much of the machine it may have."""

    model: str
    """A folder, a Hub id, or the name of a model that ships with the package."""
    revision: str | None = None
    """Commit, branch or tag on the Hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float32 on a CPU and what the checkpoint says elsewhere."""
    tensor_parallel_size: int = 1
    """GPUs that share the model's layers; executor.gpus_per_worker must reserve them."""
    max_model_len: int | None = None
    """Most tokens of prompt and reply; None is the model's own limit."""
    gpu_memory_utilization: float = 0.9
    """Share of each GPU's memory for weights and KV cache. Workers and roles that share a GPU share this too."""
    max_images: int = 8
    """Most images in one request."""
    image_max_px: int | None = None
    """Longest side of an image; larger ones are scaled down. None leaves it to the model's processor."""
    cache_mb: int = 512
    """Memory for decoded images between the calls of their journeys."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's `AsyncEngineArgs`, as they are: {max_num_seqs: 128, quantization: fp8}."""
    timeout_s: float = 1800.0
    """For one request, its wait in vLLM's queue included; an engine that lets one pass counts as dead."""

    def __post_init__(self) -> None:
        if self.tensor_parallel_size < 1 or self.max_images < 0 or self.cache_mb < 0:
            raise explain(
                what=f"tensor_parallel_size={self.tensor_parallel_size}, max_images={self.max_images}, "
                f"cache_mb={self.cache_mb}",
                where="VllmSpec",
                fix="set tensor_parallel_size to at least 1 and the others to at least 0",
            )
        if self.timeout_s <= 0:
            raise explain(what=f"timeout_s={self.timeout_s}", where="VllmSpec", fix="set it above 0")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise explain(
                what=f"gpu_memory_utilization={self.gpu_memory_utilization} is not a share",
                where="VllmSpec",
                fix="set it above 0 and to at most 1",
            )

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        """Load the model, and load it again whenever its process dies."""
        if importlib.util.find_spec("vllm") is None:
            raise explain(
                what="the engine kind `vllm` needs vLLM, which is not installed in this Python environment",
                where="engine.kind",
                fix="pip install vllm 'infinity-mm[synth]' in an environment of its own (docs/engines_vllm.md)",
            )
        async with Guarded(lambda: _one_life(self, images), timeout_s=self.timeout_s) as engine:
            yield engine


@asynccontextmanager
async def _one_life(spec: VllmSpec, images: ImageReader) -> AsyncIterator[Engine]:
    """One `AsyncLLM`, from its start to its end. Starting blocks the event loop: there is nobody to serve yet."""
    from transformers import AutoProcessor
    from vllm import __version__  # pyright: ignore[reportAttributeAccessIssue] (an environment of its own)
    from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

    folder = model_folder(spec.model, spec.revision)
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(spec, str(folder), on_cpu=_on_cpu())))
    try:
        dtype = str(llm.model_config.dtype).removeprefix("torch.")
        settings = {"image_max_px": spec.image_max_px, "engine_args": spec.engine_args}
        fingerprint = (
            f"vllm: {model_hash(folder)[:32]}, {dtype}, vllm {__version__}, {canonical_json(settings)}"
        )
        yield VllmEngine(spec, llm, AutoProcessor.from_pretrained(folder), images, fingerprint=fingerprint)
    finally:
        await asyncio.to_thread(llm.shutdown)


def engine_arguments(spec: VllmSpec, folder: str, *, on_cpu: bool) -> dict[str, Any]:
    """What `AsyncEngineArgs` gets; `spec.engine_args` wins."""
    arguments: dict[str, Any] = {
        "model": folder,
        "dtype": "float32" if on_cpu and spec.dtype == "auto" else spec.dtype,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "max_model_len": spec.max_model_len,
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "limit_mm_per_prompt": {"image": spec.max_images, "video": 0},
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments |= {"enforce_eager": True}  # compiling takes longer than a small model's work
    if spec.tensor_parallel_size > 1:
        # Our Ray actor holds the GPUs already; vLLM's own Ray executor would ask the cluster for others.
        arguments |= {"distributed_executor_backend": "mp"}
    return arguments | spec.engine_args


def _on_cpu() -> bool:
    """Whether this is vLLM's CPU build; its KV cache then gets 4 GiB unless the environment says otherwise."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    return bool(current_platform.is_cpu())


@final
class VllmEngine:
    """Asks one `AsyncLLM`; each request on its own, vLLM batches them."""

    def __init__(
        self, spec: VllmSpec, llm: Any, processor: Any, images: ImageReader, *, fingerprint: str
    ) -> None:
        self._spec = spec
        self._llm = llm
        self._template = ChatTemplate(processor)
        self._tokenizer = processor.tokenizer
        self._images = images
        self._fingerprint = fingerprint
        self._decoded: BytesLru[str, Image.Image] = BytesLru(spec.cache_mb << 20)
        self._numbers = itertools.count()

    @property
    def capabilities(self) -> Capabilities:
        """Best effort: float sums depend on the batch, so a near tie may go either way."""
        return Capabilities(
            images_per_prompt=self._spec.max_images,
            choice_logprobs=True,
            seeds=True,
            reproducible="best_effort",
            likelihood=True,
            independent=True,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files (weights, template, processor), dtype, vLLM's version, what changes its input."""
        return self._fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """All requests at once; raises `EngineDead` when vLLM's core is gone."""
        return list(await asyncio.gather(*(self._safely(self._reply, request) for request in requests)))

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """All texts at once; vLLM computes each prompt whole for this, its prefix cache holds no log-probabilities."""
        return list(await asyncio.gather(*(self._safely(self._likelihood, scoring) for scoring in scorings)))

    async def _safely(self, ask: Callable[[Any], Awaitable[A | Failure]], asked: Any) -> A | Failure:
        """The answer; what is wrong with one request is its own failure."""
        from vllm.exceptions import VLLMClientError  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine.exceptions import (  # pyright: ignore[reportMissingImports]
            EngineDeadError,
            EngineGenerateError,
        )

        try:
            return await ask(asked)
        except Refused as refused:
            return refused.failure
        except (BadImage, OSError) as error:
            return Failure(reason="bad_image", detail=str(error))
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        except VLLMClientError as error:
            is_long = getattr(error, "parameter", None) == "input_tokens"
            return Failure(reason="too_long" if is_long else "bad_request", detail=str(error))
        except (
            EngineGenerateError
        ) as error:  # a processor that raised, most often: this request's own trouble
            cause = error.__cause__ or error
            return Failure(reason="engine_error", detail=f"{type(cause).__name__}: {cause}")

    async def _reply(self, request: Request) -> Reply | Failure:
        text, shown = self._template.fill(request.turns, request.images, request.choices)
        prompt = await asyncio.to_thread(self._prompt, text, shown)
        return await (self._choose(request, prompt) if request.choices else self._write(request, prompt))

    async def _likelihood(self, scoring: Scoring) -> Likelihood:
        text, shown, ids = self._template.fill_scored(scoring)
        prompt = await asyncio.to_thread(self._prompt, text, shown)
        output = await self._run(prompt, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        if list(output.prompt_token_ids[-len(ids) :]) != ids:
            raise Refused("no_span", "the prompt does not end with the tokens of what is scored")
        logprobs = zip(ids, output.prompt_logprobs[-len(ids) :], strict=True)
        total = sum(at_place[token].logprob for token, at_place in logprobs)
        return likelihood(total, num_tokens=len(ids), prompt_tokens=len(output.prompt_token_ids) - len(ids))

    async def _write(self, request: Request, prompt: Mapping[str, Any]) -> Reply | Failure:
        from vllm.sampling_params import StructuredOutputsParams  # pyright: ignore[reportMissingImports]

        forced = None if request.schema is None else StructuredOutputsParams(json=request.schema)
        output = await self._run(
            prompt,
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            seed=sampling_seed(request),
            structured_outputs=forced,
        )
        said = output.outputs[0]
        if said.finish_reason not in ("stop", "length"):
            return Failure(
                reason="engine_error", detail=f"finish_reason {said.finish_reason}", retryable=True
            )
        reasoning, text = split_thinking(said.text)
        return Reply(
            text=text,
            reasoning=reasoning,
            finish_reason=said.finish_reason,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(said.token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def _choose(self, request: Request, prompt: Mapping[str, Any]) -> Reply:
        end = self._tokenizer.eos_token_id
        choices = [(*self._tokenise(choice), end) for choice in request.choices]
        at = forks(choices)
        if () not in at or any(len(tokens) > _MAX_BRANCHES for tokens in at.values()):
            raise Refused("bad_choice", f"the choices {list(request.choices)} have no usable first token")
        # The first alone, so that the others find its prefill in the cache.
        first = await self._fork(prompt, (), at[()])
        others = list(at)[1:]
        outputs = await asyncio.gather(*(self._fork(prompt, begin, at[begin]) for begin in others))
        at_fork: dict[Ids, dict[int, float]] = {}
        for begin, output in zip(((), *others), (first, *outputs), strict=True):
            if list(output.prompt_token_ids) != [*first.prompt_token_ids, *begin]:
                raise Refused("bad_choice", f"{begin} melts into the end of the prompt in this tokenizer")
            logprobs = output.outputs[0].logprobs[0]
            at_fork[begin] = {token: logprobs[token].logprob for token in at[begin]}
        scores = choice_logprobs(choices, at_fork)
        prompt_tokens = len(first.prompt_token_ids)
        reply = choice_reply(request.choices, scores, prompt_tokens, [*map(len, choices)])
        return replace(reply, cached_tokens=first.num_cached_tokens or 0)

    async def _fork(self, prompt: Mapping[str, Any], begin: Ids, tokens: Ids) -> Any:
        text = prompt["prompt"] + self._tokenizer.decode(begin)
        asked = {**prompt, "prompt": text}
        return await self._run(asked, max_tokens=1, temperature=0.0, logprob_token_ids=list(tokens))

    async def _run(self, prompt: Mapping[str, Any], **sampling: Any) -> Any:
        """The finished output of one prompt."""
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **sampling)
        final: Any = None
        async for output in self._llm.generate(dict(prompt), params, request_id=str(next(self._numbers))):
            final = output
        return final

    def _prompt(self, text: str, shown: Sequence[ImageRef]) -> dict[str, Any]:
        if len(shown) > self._spec.max_images:
            raise Refused("too_many_images", f"{len(shown)} of at most {self._spec.max_images}")
        if not shown:
            return {"prompt": text}
        return {
            "prompt": text,
            "multi_modal_data": {"image": [self._picture(image) for image in shown]},
            # Else vLLM hashes all pixels again in every call, to find them in its caches.
            "multi_modal_uuids": {"image": [image.sha256 for image in shown]},
        }

    def _picture(self, image: ImageRef) -> Image.Image:
        kept = self._decoded.get(image.sha256)
        if kept is None:
            kept = decode_image(self._images.read(image))
            check_shape(kept)
            if (most := self._spec.image_max_px) is not None:
                kept.thumbnail((most, most), Image.Resampling.BICUBIC)
            self._decoded.put(image.sha256, kept, num_bytes=3 * kept.width * kept.height)
        return kept

    def _tokenise(self, text: str) -> Sequence[int]:
        return cast(Sequence[int], self._tokenizer(text, add_special_tokens=False).input_ids)


def check_shares(specs: Sequence[VllmSpec], gpus_per_worker: float) -> None:
    """Raise `UserError` if the engines of one worker want more of its GPUs than it reserves."""
    if not specs or not gpus_per_worker:
        return  # the local executor, or a CPU
    share, room = sum(spec.gpu_memory_utilization for spec in specs), min(1.0, gpus_per_worker)
    most = max(spec.tensor_parallel_size for spec in specs)
    if share > room or most > max(1.0, gpus_per_worker):
        raise explain(
            what=f"{len(specs)} vLLM engine(s) want {most} GPU(s) and {share:g} of their memory; a worker reserves "
            f"{gpus_per_worker:g}",
            where="engines, executor.gpus_per_worker (configuration)",
            fix="set gpus_per_worker to tensor_parallel_size, and gpu_memory_utilization so that its sum over the "
            f"roles is at most {room:g}, better a little less",
        )
