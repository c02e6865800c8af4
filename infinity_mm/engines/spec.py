"""An engine in a YAML file: its kind, and the fields of that kind.

engine: {kind: openai, base_url: http://localhost:8000/v1, model: ..., revision: ...} --spec()--> OpenAISpec(...)
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from infinity_mm.config import build
from infinity_mm.engines.base import EngineSpec
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.engines.replay import ReplaySpec
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.engines.vllm import VllmSpec
from infinity_mm.errors import explain

KINDS: dict[str, type[Any]] = {
    "transformers": TransformersSpec,
    "openai": OpenAISpec,
    "replay": ReplaySpec,
    "vllm": VllmSpec,
}
"""Kind -> specification; its fields are what the YAML section may hold."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The fields of all kinds; None means "as the kind's own default", and another kind's field is an error.

    What each one does is said beside the field of the same name in the kind's specification.
    """

    kind: str
    """transformers, openai, replay or vllm."""

    model: str | None = None
    revision: str | None = None
    max_images: int | None = None

    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    max_batch: int | None = None
    max_wait_s: float | None = None
    cache_mb: int | None = None

    base_url: str | None = None
    replicas: tuple[str, ...] | None = None
    api_key_env: str | None = None
    timeout_s: float | None = None
    max_in_flight: int | None = None
    max_retries: int | None = None
    backoff_s: float | None = None
    max_backoff_s: float | None = None
    max_down_s: float | None = None
    image_max_px: int | None = None
    choice_field: str | None = None
    schema_field: str | None = None
    likelihood: bool | None = None
    extra_body: dict[str, Any] | None = None

    journal: str | None = None
    fingerprint: str | None = None
    images_per_prompt: int | None = None
    choice_logprobs: bool | None = None

    tensor_parallel_size: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    engine_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.spec()

    def spec(self) -> EngineSpec:
        """The specification of this kind; raises `UserError` for an unknown kind and for fields that do not fit it."""
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1)
            raise explain(
                what=f"there is no engine of kind `{self.kind}`",
                where="engine.kind",
                fix=(f"did you mean {near[0]}? " if near else "") + f"known kinds: {', '.join(KINDS)}",
            )
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "kind"}
        chosen = {name: value for name, value in given.items() if value is not None}
        return build(KINDS[self.kind], chosen, where=f"engine of kind {self.kind}")
