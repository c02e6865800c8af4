"""One attempt at an OpenAI-compatible server: a body goes out, and what comes back or does not has a name."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Generic, TypeVar, final

from infinity_mm.engines.base import Failure
from infinity_mm.engines.openai_wire import read_error

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
CONNECTION = "connection"
"""Nobody took the call, or who took it was gone before there was a reply."""
_THERE_S = 10.0
"""For a call that asks no model."""
_DEAD = "EngineCore encountered an issue"
"""What vLLM answers to all calls in flight when its core has died, before its server ends as well."""
_JSON = {"Content-Type": "application/json"}
_WARNED_BYTES = 1 << 20
"""aiohttp warns of a body from this size on, which an image soon has, unless it comes as a file; a file is slower."""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """What one call brought."""

    answer: T | Failure
    retry_after_s: float | None = None
    """When the server says to come back."""
    was_sent: bool = True
    """Whether a server may have seen it."""
    is_death: bool = False
    """Whether it looks as if the server died over it: gone without a word of reply, or so it says itself."""
    was_probe: bool = False
    """Whether it went to see if a server that was down is back."""


@final
class Http:
    """Sends bodies over one session."""

    def __init__(self, session: aiohttp.ClientSession, *, timeout_s: float, secret: str | None) -> None:
        """`secret`: the key, which servers quote when they refuse it, and which no report shows."""
        self._session = session
        self._timeout_s = timeout_s
        self._secret = secret

    async def post(self, url: str, body: bytes, read: Callable[[str], T | Failure]) -> Attempt[T]:
        """One call; never raises for what a server or the network does."""
        import aiohttp

        has_begun = False
        try:
            data = body if len(body) < _WARNED_BYTES else io.BytesIO(body)
            async with self._session.post(url, data=data, headers=_JSON) as response:
                has_begun = True
                said = await response.text(errors="replace")
                if response.status == 200:
                    return Attempt(read(said))
                failure = self._redacted(read_error(response.status, said))
                is_death = response.status == 500 and _DEAD in said
                return Attempt(failure, _seconds(response.headers.get("Retry-After")), is_death=is_death)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Attempt(self._lost(error), was_sent=False)
        except TimeoutError:
            detail = f"no reply in {self._timeout_s} s"
            return Attempt(Failure(reason="timeout", detail=detail, retryable=True))
        except (aiohttp.ClientError, OSError) as error:
            return Attempt(self._lost(error), is_death=not has_begun)

    async def is_there(self, base_url: str) -> bool:
        """Whether the server says anything at all."""
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=min(_THERE_S, self._timeout_s))
            async with self._session.get(f"{base_url}/models", timeout=timeout) as response:
                await response.read()
        except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
            return False
        return True

    def _lost(self, error: Exception) -> Failure:
        detail = f"{type(error).__name__}: {error}"
        return self._redacted(Failure(reason=CONNECTION, detail=detail, retryable=True))

    def _redacted(self, failure: Failure) -> Failure:
        """Details end up in reports."""
        if self._secret is None:
            return failure
        detail = failure.detail.replace(self._secret, "[key]")
        return Failure(reason=failure.reason, detail=detail, retryable=failure.retryable)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After comes as seconds or as a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
