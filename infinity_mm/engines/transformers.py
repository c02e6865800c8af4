"""A model of transformers in this process: ours on a fast path, any other image-text model on its own.

generate, score --MicroBatched--> one thread: prepare each --> answer the batch --bisect on an error--> answers
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast, final, runtime_checkable

from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
)
from infinity_mm.engines.batching import MicroBatched
from infinity_mm.engines.model_files import model_folder, model_hash
from infinity_mm.engines.prompting import Refused
from infinity_mm.errors import UserError, explain
from infinity_mm.vision.images import BadImage

A = TypeVar("A", Reply, Likelihood)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersSpec:
    """Which model to load, and how to run it."""

    model: str
    """A folder, a Hub id, or the name of a model that ships with the package (`nano-teacher`)."""
    revision: str | None = None
    """Commit, branch or tag on the Hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float32 on a CPU and bfloat16 elsewhere."""
    device: str = "auto"
    """A torch device; `auto` is the first GPU if there is one."""
    threads: int | None = None
    """CPU threads of the computing thread; None leaves torch's number."""
    max_batch: int = 64
    """Most requests computed together."""
    max_wait_s: float = 0.01
    """How long a request waits for company in its batch."""
    max_images: int = 8
    """Most images in one request."""
    cache_mb: int = 512
    """Memory for what is kept of images between calls: features and prefilled prompts."""

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_images < 0 or self.cache_mb < 0:
            raise explain(
                what=f"max_batch={self.max_batch}, max_images={self.max_images}, cache_mb={self.cache_mb}",
                where="TransformersSpec",
                fix="set max_batch to at least 1 and the others to at least 0",
            )

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        """Load the model; everything torch does happens in one thread of its own."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers-engine")
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(executor, _load, self, images)
            engine = TransformersEngine(loaded, executor, max_images=self.max_images)
            async with MicroBatched(engine, max_batch=self.max_batch, max_wait_s=self.max_wait_s) as batched:
                yield batched
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@runtime_checkable
class Backend(Protocol):
    """How one family of models is asked."""

    def prepare(self, request: Request) -> Any:
        """What `answer` takes; raises `Refused` or `BadImage` for a request that cannot be asked."""
        ...

    def answer(self, prompts: Sequence[Any]) -> list[Reply]:
        """One reply per prepared prompt; may raise for the whole batch."""
        ...


@runtime_checkable
class ScoringBackend(Backend, Protocol):
    """One that also scores given texts."""

    def prepare_scoring(self, scoring: Scoring) -> Any:
        """What `score` takes; raises as `prepare` does."""
        ...

    def score(self, prompts: Sequence[Any]) -> list[Likelihood]:
        """One likelihood per prepared scoring; may raise for the whole batch."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What the loading thread made."""

    backend: ScoringBackend
    fingerprint: str


@final
class TransformersEngine:
    """Runs a backend in its thread and keeps one request's trouble away from the others."""

    def __init__(self, loaded: _Loaded, executor: ThreadPoolExecutor, *, max_images: int) -> None:
        self._backend = loaded.backend
        self._fingerprint = loaded.fingerprint
        self._executor = executor
        self._max_images = max_images

    @property
    def capabilities(self) -> Capabilities:
        """Best effort: float sums depend on the batch, so a near tie may go either way."""
        return Capabilities(
            images_per_prompt=self._max_images,
            choice_logprobs=True,
            seeds=True,
            reproducible="best_effort",
            likelihood=True,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files, versions of torch and transformers, dtype."""
        return self._fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """One batch."""
        return await self._in_thread(requests, self._backend.prepare, self._backend.answer)

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """One batch."""
        return await self._in_thread(scorings, self._backend.prepare_scoring, self._backend.score)

    async def _in_thread(self, *work: Any) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._work, *work)

    def _work(
        self,
        asked: Sequence[Request] | Sequence[Scoring],
        prepare: Callable[[Any], Any],
        answer: Callable[[Sequence[Any]], Sequence[A]],
    ) -> list[A | Failure]:
        import torch

        answers: dict[int, A | Failure] = {}
        prompts: dict[int, Any] = {}
        with torch.inference_mode():
            for i, each in enumerate(asked):
                try:
                    self._check(each)
                    prompts[i] = prepare(each)
                except Exception as error:  # whatever is wrong with it, it is this request's alone
                    answers[i] = _failure(error)
            answers |= zip(prompts, _answered(list(prompts.values()), answer), strict=True)
        return [answers[i] for i in range(len(asked))]

    def _check(self, asked: Request | Scoring) -> None:
        if len(asked.images) > self._max_images:
            raise Refused("too_many_images", f"{len(asked.images)}, this engine takes {self._max_images}")


def _answered(prompts: Sequence[Any], answer: Callable[[Sequence[Any]], Sequence[A]]) -> list[A | Failure]:
    """The batch, or after an error each half of it, down to the one request that causes the error."""
    if not prompts:
        return []
    try:
        return list(answer(prompts))
    except Exception as error:
        if len(prompts) == 1:
            return [_failure(error)]
    half = len(prompts) // 2  # outside of `except`, so that the failed batch's tensors are freed first
    return _answered(prompts[:half], answer) + _answered(prompts[half:], answer)


def _failure(error: Exception) -> Failure:
    """What an error says about a request; raises `UserError` where it says that the GPU is lost to this process."""
    import torch

    if "CUDA error" in str(error):  # every later kernel fails as well, whatever it is asked about
        raise explain(
            what=f"the GPU failed, and this process cannot use it any more: {error}",
            where="engine of kind transformers",
            fix="run the same command again; replies that came are in the journal. If it comes back, look at the "
            "machine (dmesg, nvidia-smi)",
        ) from error
    match error:
        case Refused():
            return error.failure
        case BadImage():
            return Failure(reason="bad_image", detail=str(error))
        case OSError():
            return Failure(reason="bad_image", detail=f"{type(error).__name__}: {error}")
        case torch.OutOfMemoryError():
            return Failure(reason="out_of_memory", detail=str(error))
        case UserError():
            return Failure(reason="bad_request", detail=str(error))
    return Failure(reason="engine_error", detail=f"{type(error).__name__}: {error}")


def _load(spec: TransformersSpec, images: ImageReader) -> _Loaded:
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from infinity_mm.engines import attention
    from infinity_mm.engines.own_model import OwnModel
    from infinity_mm.model.released import is_released, load_released

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    transformers.utils.logging.disable_progress_bar()  # a bar per loaded file says nothing to anybody
    folder = model_folder(spec.model, spec.revision)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
    dtype = ("float32" if device == "cpu" else "bfloat16") if spec.dtype == "auto" else spec.dtype
    if is_released(folder):
        model, processor = load_released(folder, dtype=getattr(torch, dtype))
    else:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(folder)
    model = cast(Any, model).to(device).eval()
    backend = backend_for(model, processor, images, cache_bytes=spec.cache_mb << 20)
    if isinstance(backend, OwnModel) and device == "cpu":
        attention.register()
        model.get_decoder().set_attn_implementation(attention.GROUPED_SDPA)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return _Loaded(
        backend=backend, fingerprint=f"transformers: {model_hash(folder)[:32]}, {dtype}, {versions}"
    )


def backend_for(model: Any, processor: Any, images: ImageReader, *, cache_bytes: int) -> ScoringBackend:
    """Our own model on its fast path, unless a layer of it attends in a window; any other through `generate`."""
    from infinity_mm.engines.any_model import AnyModel
    from infinity_mm.engines.own_model import OwnModel

    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    is_own = model.config.model_type == "infinity_mm" and layers == {"full_attention"}
    return (OwnModel if is_own else AnyModel)(model, processor, images, cache_bytes=cache_bytes)
