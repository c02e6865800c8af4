"""The engine contract: requests in, replies or failures out, same length and order.

    generate(Request*) -> Reply | Failure *           what the model says
    score(Scoring*)    -> Likelihood | Failure *      how likely the model finds what was said

One bad request never raises for the others. Behaviour is added by wrapping (`journaled.py`, `batching.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from infinity_mm.record import ImageRef, ImageSlot, Region, Text, Turn, canonical_json, digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call: a conversation that ends with a user turn, and how to sample."""

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    """What the `ImageSlot`s of the turns point to."""
    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Seed of this request alone; one generator per request."""
    draw: int = 0
    """Number of the draw, for several samples of one request."""
    choices: tuple[str, ...] = ()
    """If given, the reply is one of these, and carries their log-probabilities where the engine has them."""
    schema: str | None = None
    """Canonical JSON of the JSON schema the reply is to follow. Engines that can, force it; the others are told by
    the prompt alone, so whoever reads the reply checks it."""
    _keys: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By fingerprint: a key is asked for by the journal, by the provenance, by a retry."""

    def key(self, fingerprint: str) -> str:
        """The journal key: canonical request, image hashes, engine, seed and draw number."""
        if fingerprint not in self._keys:
            self._keys[fingerprint] = self._key(fingerprint)
        return self._keys[fingerprint]

    def _key(self, fingerprint: str) -> str:
        body = {
            "turns": _plain_turns(self.turns),
            "images": [image.sha256 for image in self.images],
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "choices": list(self.choices),
            "seed": self.seed,
            "draw": self.draw,
        }
        if self.schema is not None:
            body["schema"] = self.schema
        return digest(fingerprint, canonical_json(body))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model said."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    choice_logprobs: tuple[float, ...] | None = None
    """Normalised log-probabilities of `Request.choices`, in their order."""
    reasoning: str = ""
    """What the model thought before it answered; journaled, never part of a sample."""
    cached_tokens: int = 0
    """Prompt tokens that the server took from its prefix cache, where it says so."""
    simulated: bool = False
    """True where no model said it (`simulate.py`): good for a look at shapes, never for data."""
    from_journal: bool = False
    """True when no model was called for it now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """A conversation whose last turn is an assistant's: that turn's text is scored, all before it is only read."""

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    """What the `ImageSlot`s of the turns point to."""

    def __post_init__(self) -> None:
        last = self.turns[-1] if self.turns else None
        if last is None or last.role != "assistant" or any(isinstance(p, ImageSlot) for p in last.content):
            raise ValueError("a scoring ends in an assistant turn of text")

    def key(self, fingerprint: str) -> str:
        """The journal key: canonical conversation, image hashes, engine; never that of a `Request`."""
        body = {
            "scored": _plain_turns(self.turns),
            "images": [image.sha256 for image in self.images],
        }
        return digest(fingerprint, canonical_json(body))


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """How likely a model finds a text, token by token, given all that stands before it."""

    mean_logprob: float
    """Mean over the tokens of the text, in nats; the token that ends a turn is not among them."""
    num_tokens: int
    """Tokens of the text."""
    prompt_tokens: int = 0
    """Tokens before it."""
    simulated: bool = False
    """As in a reply."""
    from_journal: bool = False
    """True when no model was called for it now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why there is no reply."""

    reason: str
    """Short snake_case name, counted in reports: timeout, http_429, bad_image, engine_error, ..."""
    detail: str
    retryable: bool = False

    @property
    def is_said(self) -> bool:
        """Whether the engine did answer, only of no use: paid for like a reply, and not asked for again."""
        return not self.retryable and self.reason in _SAID

    @property
    def is_outage(self) -> bool:
        """Whether it speaks of the engine and not of the request; too many of these stop a run."""
        return self.retryable or self.reason in ENDS_RUN or self.reason in _OWN_TROUBLE


_SAID = ("not_a_choice", "empty_reply", "content_filter", "killed_engine")
"""Reasons of failures that the same request would have again; the last one would cost a restart as well."""
ENDPOINT_DOWN = "endpoint_down"
"""Why a call failed that was never sent."""
ENDS_RUN = frozenset({ENDPOINT_DOWN, *(f"http_{status}" for status in (401, 402, 403, 404, 405, 407))})
"""Reasons that every further request would have as well, until a person does something: no server, an expired key, a
spent quota, a model that is not served. One is enough to stop a run."""
_OWN_TROUBLE = ("engine_error", "out_of_memory")
"""Of an engine in this process: once in a while the fault of an image, often its own."""


class EngineDead(Exception):  # noqa: N818 (a fact about a process)
    """The process behind an engine is gone: all its requests in flight raise this, and only a new one helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What an engine can do, checked against the stages before a run."""

    images_per_prompt: int
    """Most images in one request; 0 means text only."""
    choice_logprobs: bool
    """Whether replies to requests with `choices` carry log-probabilities."""
    seeds: bool
    """Whether a request's seed decides its sampling."""
    reproducible: Literal["exact", "best_effort"]
    """Whether two fresh runs give the same bytes, whatever the batching."""
    likelihood: bool = False
    """Whether it can `score`."""
    independent: bool = False
    """Whether the requests of one call do not wait for each other: the journal then has each reply as it comes."""


@runtime_checkable
class ImageReader(Protocol):
    """Reads the bytes behind an image reference and checks their hash."""

    def read(self, image: ImageRef) -> bytes:
        """Encoded bytes; raises `infinity_mm.vision.images.BadImage` when missing or changed."""
        ...


@runtime_checkable
class Engine(Protocol):
    """An open connection to a model, or the model itself."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    @property
    def fingerprint(self) -> str:
        """Model, weights' revision, engine version, dtype, processor limits, chat template; enters every key."""
        ...

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """One reply or failure per request, in order."""
        ...

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """One likelihood or failure per scoring, in order; those about one image belong in one call."""
        ...


@runtime_checkable
class EngineSpec(Protocol):
    """Plain, picklable configuration of an engine."""

    def open(self, images: ImageReader) -> AbstractAsyncContextManager[Engine]:
        """Start or connect; the context manager owns the process or connection."""
        ...


def no_likelihoods(scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
    """What `score` returns where the capabilities say that it cannot."""
    return [Failure(reason="no_likelihood", detail="this engine gives none") for _ in scorings]


def _plain_turns(turns: Sequence[Turn]) -> list[object]:
    return [[turn.role, [_plain(part) for part in turn.content]] for turn in turns]


def _plain(part: Text | ImageSlot | Region) -> list[object]:
    match part:
        case Text(text=text):
            return ["text", text]
        case ImageSlot(index=index):
            return ["image", index]
        case Region(index=index, coords=coords):
            return ["region", index, list(coords)]
