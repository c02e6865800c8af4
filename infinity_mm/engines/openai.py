"""Any server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, llama.cpp, hosted models).

    request --image as data URI, payload--> a place at one of the servers --POST /chat/completions--> Reply | Failure
                                                 ^---------- trouble that passes: back off ---------/

aiohttp, not httpx: with 64 calls in flight httpx's connection pool limits it to an eighth of the throughput.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

from infinity_mm.engines.allowance import CUT_OFF, OUT_OF_BUDGET, Allowance
from infinity_mm.engines.base import (
    ENDPOINT_DOWN,
    Capabilities,
    Engine,
    Failure,
    ImageReader,
    Likelihood,
    Reply,
    Request,
    Scoring,
    no_likelihoods,
)
from infinity_mm.engines.endpoints import Endpoints, Place
from infinity_mm.engines.guard import Picture, killed, picture_of, wrong_slots
from infinity_mm.engines.killers import Killers
from infinity_mm.engines.lru import BytesLru
from infinity_mm.engines.openai_http import CONNECTION, Attempt, Http
from infinity_mm.engines.openai_score import Payload, Post, Scorer
from infinity_mm.engines.openai_wire import SchemaField, chat_payload, data_uri, read_reply
from infinity_mm.engines.prompting import Refused, check_marks, split_scoring
from infinity_mm.errors import explain, need
from infinity_mm.record import ImageRef, canonical_json
from infinity_mm.vision.images import BadImage

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
_URI_CACHE_BYTES = 64 << 20
"""For images between the calls of their journeys."""
_LAST_WORDS_S = 2.0
"""From vLLM's answer that its core has died to the end of its server."""
UNPINNED = "unpinned"
"""In the place of a revision that nobody declared; the data set's card looks for it."""
_CONNECT_S = 10.0
"""Longest wait for a connection: a machine that is off says nothing, and its images have other servers."""
_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAISpec:
    """Which server and model to ask, and how hard."""

    base_url: str
    """Up to and including the version, as in http://localhost:8000/v1."""
    model: str
    """The name the server knows."""
    revision: str | None = None
    """Which weights these are: a commit, a date. Replies are remembered under it, so change it with the weights.
    None is recorded as `unpinned`, in the provenance of every reply and on the data set's card."""
    replicas: tuple[str, ...] = ()
    """Base URLs of further servers with the same model; an image goes to the same one while that is up: its cache."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; None for a server without one."""
    timeout_s: float = 300.0
    """For one attempt, from sending to the last byte."""
    max_in_flight: int = 64
    """Most calls at the same time to one server; fewer while it is overloaded."""
    max_retries: int = 5
    """Further attempts after 408, 429, 5xx, a timeout, a lost connection or an unreadable reply."""
    backoff_s: float = 0.5
    """Wait before the first retry; doubles each time, with jitter. A server's Retry-After is followed instead."""
    max_backoff_s: float = 60.0
    """Longest wait before a retry, whatever the server says."""
    max_down_s: float = 900.0
    """How long calls wait while no server can be reached; then they fail as `endpoint_down` and the run stops."""
    max_images: int = 8
    """Most images in one request."""
    image_max_px: int | None = None
    """Longest side of a sent image; larger ones are scaled down. None sends them as they are."""
    choice_field: Literal["structured_outputs", "guided_choice"] | None = None
    """vLLM's field that forces one of `Request.choices` (the second name is that of older versions)."""
    schema_field: SchemaField | None = None
    """The server's field that forces `Request.schema`: `response_format` is OpenAI's, the others are vLLM's. None: the
    prompt alone asks for the form, and one repair call mends what does not have it."""
    likelihood: bool = False
    """Whether the server scores given texts, which vLLM does (`prompt_logprobs`, and /tokenize beside /v1)."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Added to every call, as in {chat_template_kwargs: {enable_thinking: false}}."""

    def __post_init__(self) -> None:
        for url in (self.base_url, *self.replicas):
            if not url.startswith(("http://", "https://")):
                raise explain(
                    what=f"`{url}` is not an HTTP address",
                    where="OpenAISpec",
                    fix="as in http://localhost:8000/v1",
                )
        if self.max_in_flight < 1 or self.max_retries < 0 or self.timeout_s <= 0:
            raise explain(
                what=f"max_in_flight={self.max_in_flight}, max_retries={self.max_retries}, timeout_s={self.timeout_s}",
                where="OpenAISpec",
                fix="set max_in_flight to at least 1, max_retries to at least 0, timeout_s above 0",
            )

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        """Open connections; nothing is sent yet."""
        if importlib.util.find_spec("aiohttp") is None:
            raise need("aiohttp", extra="synth", purpose="asking a model server")
        import aiohttp

        key = api_key(self.api_key_env)
        if self.revision is None and self.model not in _warned:
            _warned.add(self.model)
            _log.warning(
                "%s has no `revision`: what it says is recorded as said by unpinned weights", self.model
            )
        async with aiohttp.ClientSession(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=min(_CONNECT_S, self.timeout_s)),
            connector=aiohttp.TCPConnector(limit_per_host=self.max_in_flight, limit=0),
        ) as session:
            yield OpenAIEngine(self, session, images, secret=key)


@final
class OpenAIEngine:
    """Sends each request on its own, up to `max_in_flight` at a time to each server."""

    def __init__(
        self, spec: OpenAISpec, session: aiohttp.ClientSession, images: ImageReader, *, secret: str | None
    ) -> None:
        self._spec = spec
        self._http = Http(session, timeout_s=spec.timeout_s, secret=secret)
        self._images = images
        self._endpoints = Endpoints(
            [url.rstrip("/") for url in (spec.base_url, *spec.replicas)],
            max_in_flight=spec.max_in_flight,
            slow_s=spec.timeout_s / 2,
            max_down_s=spec.max_down_s,
        )
        self._killers = Killers()
        self._scorer = Scorer(model=spec.model, extra_body=spec.extra_body)
        self._uris: BytesLru[str, str] = BytesLru(_URI_CACHE_BYTES)
        self._reading: dict[str, asyncio.Task[str]] = {}
        settings = {
            "image_max_px": spec.image_max_px,
            "choice_field": spec.choice_field,
            "extra_body": spec.extra_body,
        } | ({} if spec.schema_field is None else {"schema_field": spec.schema_field})
        self._fingerprint = f"openai: {spec.model}@{spec.revision or UNPINNED}, {canonical_json(settings)}"
        self.allowance: Allowance | None = None

    @property
    def capabilities(self) -> Capabilities:
        """No choices with probabilities: servers do not score several continuations of one prefill."""
        return Capabilities(
            images_per_prompt=self._spec.max_images,
            choice_logprobs=False,
            seeds=True,
            reproducible="best_effort",
            likelihood=self._spec.likelihood,
            independent=True,
        )

    @property
    def fingerprint(self) -> str:
        """Model, revision and what changes its input; not the address, so that a server can move."""
        return self._fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """All requests at once, as far as there are places."""
        if len(requests) == 1:
            return [await self._one(requests[0])]
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """All scorings at once, as far as there are places."""
        if not self._spec.likelihood:
            return no_likelihoods(scorings)
        return list(await asyncio.gather(*(self._one_scored(scoring) for scoring in scorings)))

    async def _one(self, request: Request) -> Reply | Failure:
        async def payload() -> dict[str, Any]:
            return chat_payload(
                request,
                await self._sent(request.images),
                model=self._spec.model,
                choice_field=self._spec.choice_field,
                schema_field=self._spec.schema_field,
                extra_body=self._spec.extra_body,
            )

        if (problem := self._problem(request)) is not None:
            return problem
        return await self._posting(request)(
            "chat/completions", payload, lambda body: read_reply(body, request.choices)
        )

    async def _one_scored(self, scoring: Scoring) -> Likelihood | Failure:
        if (problem := self._problem(scoring)) is not None:
            return problem
        try:
            _, text = split_scoring(scoring)
        except Refused as refused:
            return refused.failure
        return await self._scorer.score(
            scoring, text, lambda: self._sent(scoring.images), self._posting(scoring)
        )

    def _problem(self, asked: Request | Scoring) -> Failure | None:
        """What is wrong with it before any server sees it: most of what has ever brought one down."""
        if len(asked.images) > self._spec.max_images:
            return Failure(
                reason="too_many_images", detail=f"{len(asked.images)} of at most {self._spec.max_images}"
            )
        try:
            check_marks(turn.text for turn in asked.turns)
        except Refused as refused:
            return refused.failure
        return wrong_slots(asked)

    async def _sent(self, images: Sequence[ImageRef]) -> list[str]:
        return [await self._uri(image) for image in images]

    def _posting(self, asked: Request | Scoring) -> Post:
        """Calls for one request or scoring: to the same server while that is up and well, with retries."""
        affinity = asked.images[0].sha256 if asked.images else asked.key(self.fingerprint)

        async def post(path: str, payload: Payload, read: Callable[[str], T | Failure]) -> T | Failure:
            attempt = 0
            num_bad = 0
            while True:
                tried = await self._placed(asked, affinity, path, payload, read, skip=max(0, num_bad - 1))
                answer = tried.answer
                if not isinstance(answer, Failure) or not answer.retryable or answer.reason == ENDPOINT_DOWN:
                    return answer
                num_bad += answer.reason != CONNECTION
                # A probe that nobody took says nothing about the call, and others may have no turn to probe.
                is_counted = tried.was_sent or not tried.was_probe
                if is_counted and attempt == self._spec.max_retries:
                    return answer
                rng = random.Random(f"{asked.key(self.fingerprint)} {attempt}")
                await asyncio.sleep(self._wait_s(attempt, tried.retry_after_s, rng))
                attempt += is_counted

        return post

    async def _placed(
        self,
        asked: Request | Scoring,
        affinity: str,
        path: str,
        payload: Payload,
        read: Callable[[str], T | Failure],
        *,
        skip: int,
    ) -> Attempt[T]:
        """One call, as soon as there is a place for it."""
        picture = picture_of(asked, self._fingerprint)
        while True:
            if picture in self._killers:
                return Attempt(killed(asked), was_sent=False)
            is_suspect = self._killers.is_suspect(picture)
            place = await self._endpoints.place(affinity, skip=skip, alone=is_suspect)
            if place is None:
                detail = f"no server could be reached for {self._spec.max_down_s} s"
                return Attempt(Failure(reason=ENDPOINT_DOWN, detail=detail, retryable=True), was_sent=False)
            if picture not in self._killers and is_suspect == self._killers.is_suspect(picture):
                break
            self._endpoints.give_back(place, None)  # another call about the picture has taught us better
        said: T | Failure | None = None
        """What the server is judged by."""
        try:
            if is_suspect and not await self._http.is_there(place.endpoint.url):
                said = Failure(reason=CONNECTION, detail="the server is not there", retryable=True)
                return Attempt(said, was_sent=False, was_probe=place.is_probe)
            try:
                # Only now: hundreds of calls wait for a place, and each body is a copy of its images.
                body = json.dumps(await payload()).encode()
            except (BadImage, OSError) as error:
                return Attempt(Failure(reason="bad_image", detail=str(error)), was_sent=False)
            attempt = await self._allowed(asked, f"{_root(place.endpoint.url, path)}/{path}", body, read)
            answer = attempt.answer
            said = None if answer is OUT_OF_BUDGET else answer
            if path != "tokenize":
                self._note(picture, attempt, place)
                if is_suspect and place.is_alone and attempt.is_death and await self._is_gone(place, attempt):
                    answer = killed(asked) if self._killers.died_alone(picture) else answer
            return replace(attempt, answer=answer, was_probe=place.is_probe)
        finally:
            self._endpoints.give_back(place, said)

    def _note(self, picture: Picture, attempt: Attempt[Any], place: Place) -> None:
        """What a call says about its picture."""
        now = asyncio.get_running_loop().time()
        if attempt.is_death:
            self._killers.lost(picture, sent_at=place.sent_at, now=now)
        elif not isinstance(attempt.answer, Failure):
            self._killers.answered(picture, now=now)

    async def _is_gone(self, place: Place, attempt: Attempt[Any]) -> bool:
        """Whether a server has really died; one that still said so needs a moment for it."""
        said_so = isinstance(attempt.answer, Failure) and attempt.answer.reason != CONNECTION
        await asyncio.sleep(_LAST_WORDS_S if said_so else 0)
        return not await self._http.is_there(place.endpoint.url)

    async def _allowed(
        self, asked: Request | Scoring, url: str, body: bytes, read: Callable[[str], T | Failure]
    ) -> Attempt[T]:
        """One attempt, if the budget has it."""
        if self.allowance is None or url.endswith("/tokenize"):  # which asks no model
            return await self._http.post(url, body, read)
        if not await self.allowance.reserve([asked]):
            return Attempt(OUT_OF_BUDGET, was_sent=False)
        answer: T | Failure = CUT_OFF
        try:
            attempt = await self._http.post(url, body, read)
            answer = attempt.answer
        finally:
            assert isinstance(answer, Reply | Likelihood | Failure), "what chat/completions is read as"
            self.allowance.settle(asked, answer)
        return attempt

    def _wait_s(self, attempt: int, retry_after_s: float | None, rng: random.Random) -> float:
        backoff_s = self._spec.backoff_s * 2**attempt * (0.5 + rng.random())
        return min(self._spec.max_backoff_s, backoff_s if retry_after_s is None else max(retry_after_s, 0.0))

    async def _uri(self, image: ImageRef) -> str:
        """Read once however many calls about the image come at the same time."""
        sha256 = image.sha256
        kept = self._uris.get(sha256)
        if kept is not None:
            return kept
        reading = self._reading.get(sha256)
        if reading is None:
            reading = asyncio.create_task(asyncio.to_thread(self._read_uri, image))
            self._reading[sha256] = reading
            reading.add_done_callback(lambda _: self._reading.pop(sha256))
        uri = await asyncio.shield(reading)
        self._uris.put(sha256, uri, num_bytes=len(uri))
        return uri

    def _read_uri(self, image: ImageRef) -> str:
        return data_uri(self._images.read(image), max_side_px=self._spec.image_max_px)


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable, None for None; raises `UserError` if the variable is empty."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise explain(
            what=f"the environment variable {variable} is not set",
            where="engine.api_key_env",
            fix=f"export {variable}=... before the run, or leave api_key_env out for a server without a key",
        )
    return key


def _root(base_url: str, path: str) -> str:
    """vLLM's /tokenize is no part of the protocol, and lies beside its version."""
    return base_url.removesuffix("/v1") if path == "tokenize" else base_url
