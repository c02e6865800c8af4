"""An engine without a model, whose answers say what it was asked."""

import asyncio
from collections.abc import Callable, Sequence

from infinity_mm.engines.base import Capabilities, Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.record import Text, Turn


def ask(text: str, *, seed: int = 0, temperature: float = 0.0, max_new_tokens: int = 8) -> Request:
    """A request without an image."""
    return Request(
        turns=(Turn("user", (Text(text),)),),
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temperature,
    )


def said(text: str, *, asked: str = "what") -> Scoring:
    """A text to be scored, without an image."""
    return Scoring(turns=(Turn("user", (Text(asked),)), Turn("assistant", (Text(text),))))


class Echo:
    """Answers `text!`, fails on texts with "bad", raises on texts with "raise"; remembers its batches."""

    capabilities = Capabilities(images_per_prompt=0, choice_logprobs=False, seeds=True, reproducible="exact")
    fingerprint = "echo"

    def __init__(self, *, delay_s: float = 0.0, gate: asyncio.Event | None = None) -> None:
        """It answers after `delay_s`, and once the gate is open."""
        self.batches: list[list[str]] = []
        self._delay_s = delay_s
        self._gate = gate

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        texts = [request.turns[-1].text for request in requests]
        self.batches.append(texts)
        await asyncio.sleep(self._delay_s)
        if self._gate is not None:
            await self._gate.wait()
        if any("raise" in text for text in texts):
            raise RuntimeError("out of memory")
        return [
            Failure(reason="bad_text", detail=text) if "bad" in text else Reply(text=text + "!")
            for text in texts
        ]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """Minus the number of characters, for texts without "bad"."""
        texts = [scoring.turns[-1].text for scoring in scorings]
        self.batches.append(texts)
        await asyncio.sleep(self._delay_s)
        return [
            Failure(reason="bad_text", detail=text)
            if "bad" in text
            else Likelihood(mean_logprob=-len(text), num_tokens=len(text.split()), prompt_tokens=1)
            for text in texts
        ]


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until something is so."""
    while not condition():
        await asyncio.sleep(0.001)
