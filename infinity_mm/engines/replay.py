"""An engine without a model: it answers from a journal, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import final

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
from infinity_mm.engines.journaled import likelihood_from, replayed, reply_from
from infinity_mm.storage.journal import Journal


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySpec:
    """Answers from a recorded run."""

    journal: str
    """Folder or URL of the recorded run's journal."""
    fingerprint: str
    """The recorded engine's fingerprint, as its run.json says."""
    images_per_prompt: int = 8
    """As the recorded engine's."""
    choice_logprobs: bool = True
    """As the recorded engine's."""
    likelihood: bool = True
    """As the recorded engine's."""

    @asynccontextmanager
    async def open(self, images: ImageReader) -> AsyncIterator[Engine]:
        """Read the journal; images are never looked at."""
        yield Replay(
            Journal(self.journal, worker="replay"),
            fingerprint=self.fingerprint,
            capabilities=Capabilities(
                images_per_prompt=self.images_per_prompt,
                choice_logprobs=self.choice_logprobs,
                seeds=True,
                reproducible="exact",
                likelihood=self.likelihood,
            ),
        )


@final
class Replay:
    """Looks requests up under another engine's fingerprint; raises `UserError` for one that was not recorded."""

    def __init__(self, journal: Journal, *, fingerprint: str, capabilities: Capabilities) -> None:
        self._journal = journal
        self._fingerprint = fingerprint
        self._capabilities = capabilities

    @property
    def capabilities(self) -> Capabilities:
        """Those of the recorded engine; exact, because it can only say one thing."""
        return self._capabilities

    @property
    def fingerprint(self) -> str:
        """That of the recorded engine."""
        return self._fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """What was recorded, failures included."""
        return [
            replayed(self._journal, request, request.key(self._fingerprint), reply_from)
            for request in requests
        ]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """What was recorded, failures included."""
        return [
            replayed(self._journal, scoring, scoring.key(self._fingerprint), likelihood_from)
            for scoring in scorings
        ]
