"""Likelihoods from a vLLM server: its chat endpoint reads the conversation, and says how likely each token was.

    scored text --/tokenize, in a chat without images--> the ids it becomes, behind those that open its turn
    conversation --/chat/completions, prompt_logprobs--> ids and log-probabilities of the whole prompt
    the prompt must end with those ids --> mean over them | Failure

The images travel once, and where the text begins is read off the server's own ids, never guessed. vLLM computes
`prompt_logprobs` without its prefix cache: every text costs the prefill of its image.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from infinity_mm.engines.base import Failure, Likelihood, Scoring
from infinity_mm.engines.openai_wire import wire_messages
from infinity_mm.engines.prompting import (
    STUB,
    STUB_REPLIES,
    Refused,
    likelihood,
    opening,
    scored_ids,
)

T = TypeVar("T")
Payload = Callable[[], Awaitable[Mapping[str, Any]]]
_OPEN_END = {"add_generation_prompt": False, "continue_final_message": True}
"""The conversation stops right behind the scored text, before the marks that close its turn."""


@runtime_checkable
class Post(Protocol):
    """Sends one call and reads its answer, with the engine's retries."""

    def __call__(
        self, path: str, payload: Payload, read: Callable[[str], T | Failure]
    ) -> Awaitable[T | Failure]:
        """`path` is `tokenize` or `chat/completions`; `payload` makes the body, once there is a place for the call."""
        ...


@final
class Scorer:
    """Scores texts for one engine; remembers how the server opens an assistant turn."""

    def __init__(self, *, model: str, extra_body: Mapping[str, Any]) -> None:
        self._model = model
        self._extra_body = extra_body
        self._opening: list[int] | None = None
        self._lock = asyncio.Lock()

    async def score(
        self, scoring: Scoring, text: str, uris: Callable[[], Awaitable[Sequence[str]]], post: Post
    ) -> Likelihood | Failure:
        """Two calls, a short one without images and the one that is measured; `uris` reads the images."""
        begins = await self._read_opening(post)
        if isinstance(begins, Failure):
            return begins
        whole = await post("tokenize", partial(self._replied, text), read_ids)
        if isinstance(whole, Failure):
            return whole
        try:
            ids = scored_ids(begins, whole, text)
        except Refused as refused:
            return refused.failure

        async def payload() -> dict[str, Any]:
            return score_payload(scoring, await uris(), model=self._model, extra_body=self._extra_body)

        return await post("chat/completions", payload, lambda body: read_likelihood(body, ids))

    async def _read_opening(self, post: Post) -> list[int] | Failure:
        async with self._lock:
            if self._opening is None:
                chats: list[list[int]] = []
                for reply in STUB_REPLIES:
                    ids = await post("tokenize", partial(self._replied, reply), read_ids)
                    if isinstance(ids, Failure):
                        return ids
                    chats.append(ids)
                self._opening = opening(*chats)
            return self._opening

    async def _replied(self, text: str) -> dict[str, Any]:
        messages = [STUB, {"role": "assistant", "content": text}]
        payload: dict[str, Any] = {"model": self._model, "messages": messages, **_OPEN_END}
        if "chat_template_kwargs" in self._extra_body:
            payload["chat_template_kwargs"] = self._extra_body["chat_template_kwargs"]
        return payload


def score_payload(
    scoring: Scoring, uris: Sequence[str], *, model: str, extra_body: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of the call that is measured; the one token that it writes is thrown away."""
    return {
        **extra_body,
        **_OPEN_END,
        "model": model,
        "messages": wire_messages(scoring.turns, scoring.images, uris),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }


def read_ids(body: str) -> list[int] | Failure:
    """The ids in an answer of /tokenize."""
    try:
        return [int(id_) for id_ in json.loads(body)["tokens"]]
    except (ValueError, LookupError, TypeError) as error:
        return _unreadable(error, body)


def read_likelihood(body: str, scored: Sequence[int]) -> Likelihood | Failure:
    """The likelihood of the ids that the prompt ends with; a failure if it ends with others."""
    try:
        data = json.loads(body)
        ids, entries = data["prompt_token_ids"], data["prompt_logprobs"]
        if list(ids[-len(scored) :]) != list(scored) or len(ids) != len(entries):
            return Failure(reason="no_span", detail="the server's prompt does not end with the scored text")
        values = [entry[str(id_)]["logprob"] for id_, entry in zip(scored, entries[-len(scored) :])]
        return likelihood(sum(values), num_tokens=len(scored), prompt_tokens=len(ids) - len(scored))
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        return _unreadable(error, body)


def _unreadable(error: Exception, body: str) -> Failure:
    detail = f"{type(error).__name__}: {error} in {body[:300]!r}"
    return Failure(reason="bad_reply", detail=detail, retryable=True)
