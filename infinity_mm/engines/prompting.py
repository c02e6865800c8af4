"""From a request to chat messages, the form every chat template and every server takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from PIL import Image

from infinity_mm.engines.base import Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.record import ImageRef, ImageSlot, Region, Text, Turn, digest
from infinity_mm.vision.images import BadImage

MAX_ASPECT = 200
"""Longest side over shortest: the processors of Qwen's family refuse more."""
_MARKS = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:image|video|img_context|image_soft_token|start_of_image)>|\[IMG\]",
    re.IGNORECASE,
)
"""Control marks of the families that are served: what a server makes of one in a text is up to its tokenizer."""


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
                    _say(parts, text)
                case Region():
                    _say(parts, region_text(part))
                case ImageSlot(index=index):
                    if index >= len(images):
                        raise Refused("bad_request", f"image {index} of {len(images)}")
                    parts.append({"type": "image", "index": index})
        messages.append({"role": turn.role, "content": parts})
    return messages


def _say(parts: list[dict[str, Any]], text: str) -> None:
    """Text after text is one part: some servers put a line break between two."""
    if parts and parts[-1]["type"] == "text":
        parts[-1]["text"] += text
    else:
        parts.append({"type": "text", "text": text})


def check_marks(texts: Iterable[str]) -> None:
    """Raise `Refused` for a text with a control mark; for models whose tokenizer is not at hand."""
    for text in texts:
        if found := _MARKS.search(text):
            raise _marked(found[0])


def check_shape(picture: Image.Image) -> None:
    """Raise `BadImage` for a picture so narrow that the processors of some models end over it."""
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        raise BadImage("too_narrow", f"{picture.width}x{picture.height} px")


def _marked(mark: str) -> Refused:
    return Refused("special_token", f"the text holds {mark!r}, which the model reads as a control mark")


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


@final
class ChatTemplate:
    """The chat template of a processor of transformers, and the control marks that no text may hold."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._image_token: str | None = getattr(processor, "image_token", None)
        marks = processor.tokenizer.all_special_tokens
        self._special = re.compile("|".join(re.escape(mark) for mark in marks) or "(?!)")
        self._opening: list[int] | None = None
        """How the template opens a reply, once somebody scores."""

    def fill(
        self, turns: Sequence[Turn], images: Sequence[ImageRef], choices: Sequence[str] = ()
    ) -> tuple[str, list[ImageRef]]:
        """A prompt up to where the model goes on, and the images of its placeholders; raises `Refused`."""
        messages, shown = self._checked(turns, images, choices)
        prompt = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._counted(prompt, shown), shown

    def fill_scored(self, scoring: Scoring) -> tuple[str, list[ImageRef], list[int]]:
        """A conversation up to the end of its last text, its images, and the ids of that text; raises `Refused`."""
        turns, scored = split_scoring(scoring)
        messages, shown = self._checked(turns, scoring.images, [scored])
        if self._opening is None:
            self._opening = opening(*(self._ids(self._replied([STUB], reply)) for reply in STUB_REPLIES))
        ids = scored_ids(self._opening, self._ids(self._replied([STUB], scored)), scored)
        return self._counted(self._replied(messages, scored), shown), shown, ids

    def _checked(
        self, turns: Sequence[Turn], images: Sequence[ImageRef], said: Sequence[str]
    ) -> tuple[list[dict[str, Any]], list[ImageRef]]:
        messages = chat_messages(turns, images)
        parts = [part for message in messages for part in message["content"]]
        for text in [*(part["text"] for part in parts if part["type"] == "text"), *said]:
            if found := self._special.search(text):
                raise _marked(found[0])
        return messages, [images[part["index"]] for part in parts if part["type"] == "image"]

    def _replied(self, messages: Sequence[Mapping[str, Any]], reply: str) -> str:
        """A chat as the template writes it with this reply, whose turn stays open."""
        last = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
        return self._processor.apply_chat_template(
            [*messages, last], tokenize=False, continue_final_message=True
        )

    def _counted(self, prompt: str, shown: Sequence[ImageRef]) -> str:
        """The prompt, if it has as many placeholders as images."""
        if self._image_token is not None and prompt.count(self._image_token) != len(shown):
            raise Refused(
                "placeholders",
                f"{prompt.count(self._image_token)} image placeholders in the prompt, {len(shown)} images",
            )
        return prompt

    def _ids(self, text: str) -> list[int]:
        return self._processor.tokenizer(text, add_special_tokens=False).input_ids


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
