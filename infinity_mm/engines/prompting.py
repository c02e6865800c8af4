"""From a request to chat messages, the form every chat template and every server takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infinity_mm.engines.base import Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.record import ImageRef, ImageSlot, Region, Text, Turn, digest


class Refused(Exception):  # noqa: N818 (a fact about a request, not a programming error)
    """A request that cannot be asked, as opposed to an engine that fails; carries `reason: detail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")

    @property
    def failure(self) -> Failure:
        """The failure to hand back; asking again would not help."""
        reason, _, detail = str(self.args[0]).partition(": ")
        return Failure(reason=reason, detail=detail)


def chat_messages(turns: Sequence[Turn], images: Sequence[ImageRef]) -> list[dict[str, Any]]:
    """Messages of typed parts: `{"type": "text", "text": ...}` or `{"type": "image", "index": ...}`."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        parts: list[dict[str, Any]] = []
        for part in turn.content:
            match part:
                case Text(text=text):
                    parts.append({"type": "text", "text": text})
                case Region():
                    parts.append({"type": "text", "text": region_text(part)})
                case ImageSlot(index=index):
                    if index >= len(images):
                        raise Refused("bad_request", f"image {index} of {len(images)}")
                    parts.append({"type": "image", "index": index})
        messages.append({"role": turn.role, "content": parts})
    return messages


def split_scoring(scoring: Scoring) -> tuple[tuple[Turn, ...], str]:
    """The turns that are read and the text that is scored; raises `Refused` if there is none."""
    (message,) = chat_messages(scoring.turns[-1:], ())
    text = "".join(part["text"] for part in message["content"])
    if not text.strip():
        raise Refused("nothing_to_score", "the last turn is empty")
    return scoring.turns[:-1], text


STUB = {"role": "user", "content": [{"type": "text", "text": "x"}]}
"""A user turn that stands for any: how a template opens a reply does not depend on what was asked."""
STUB_REPLIES = ("0", "A")
"""Two texts that begin with different tokens: what is the same before them opens the reply."""


def opening(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """The ids that two chats have in common from the start."""
    same = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    return list(left[:same])


def scored_ids(opening: Sequence[int], whole: Sequence[int], text: str) -> list[int]:
    """What a text becomes behind the ids that open its turn; raises `Refused` where they change with it."""
    ids = list(whole[len(opening) :])
    if list(whole[: len(opening)]) != list(opening) or not ids:
        raise Refused("no_span", f"{text[:100]!r} melts into the marks that open its turn")
    return ids


def likelihood(total_logprob: float, *, num_tokens: int, prompt_tokens: int) -> Likelihood:
    """The likelihood of a text from the sum over its tokens; raises where the model gave no number."""
    if not math.isfinite(total_logprob):
        raise ArithmeticError(f"the log-probability of the text is {total_logprob}")
    return Likelihood(
        mean_logprob=total_logprob / num_tokens, num_tokens=num_tokens, prompt_tokens=prompt_tokens
    )


def region_text(region: Region) -> str:
    """A box or point in thousandths of the upright image, the convention most model families were trained on."""
    return "[" + ", ".join(str(round(1000 * value)) for value in region.coords) + "]"


def sampling_seed(request: Request) -> int:
    """63 bits that differ between the draws of one seed."""
    return int(digest("sample", str(request.seed), str(request.draw))[:16], 16) >> 1


def choice_reply(
    choices: Sequence[str], scores: Sequence[float], prompt_tokens: int, choice_tokens: Sequence[int]
) -> Reply:
    """The most likely choice, with log-probabilities that sum to one over the choices."""
    largest = max(scores)
    total = largest + math.log(sum(math.exp(score - largest) for score in scores))
    best = scores.index(largest)
    return Reply(
        text=choices[best],
        prompt_tokens=prompt_tokens,
        completion_tokens=choice_tokens[best],
        choice_logprobs=tuple(score - total for score in scores),
    )
