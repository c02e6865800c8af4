"""A vision-language model as a tagger: asked for tags of the vocabulary, with a probability each.

samples --prompt, vocabulary before the image--> engine (journaled) --read_tags--> words of the vocabulary with scores
                                                       \\--> no reply, or one without tags: set aside with the reason

A score is the probability that the model states, 1 where it states none. Neither is calibrated, and tags say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from infinity_mm.engines.base import ENDS_RUN, Engine, Failure, Reply, Request
from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Call, ImageSlot, Outcome, Quarantined, Sample, Text, Turn, canonical_json
from infinity_mm.synth.exchange import keep, printable, prompt_label, unreadable
from infinity_mm.taxonomy.tagger import TaggerConfig, best_scores, choose_tags, with_tags
from infinity_mm.taxonomy.tree_checks import normal_name
from infinity_mm.taxonomy.vocabulary import load_vocabulary

PROMPTS = "taxonomy"
_MAX_TAGS = 24
"""As the prompts say."""
_SCHEMA = canonical_json(
    {
        "type": "object",
        "properties": {
            "tags": {
                "type": "array",
                "maxItems": _MAX_TAGS,
                "items": {
                    "type": "object",
                    "properties": {
                        "tag": {"type": "string"},
                        "probability": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                    "required": ["tag", "probability"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["tags"],
        "additionalProperties": False,
    }
)
"""Not the vocabulary as an enumeration: it would travel with every request."""
_OBJECT = re.compile(r"\{[^{}]*\}")
_ITEM = re.compile(
    r"^[\s\-*•\d.)\[\"']*?([^\W\d_].*?)[\"'\]}\s]*(?:[:=(]\s*([01]?\.\d+|\d{1,3}(?:\s?%)?)\s*\)?)?\s*$"
)
_FEW_FAILURES = 4
_MAX_FAILED_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a reply comes to."""

    scores: Mapping[str, float]
    """Tag of the vocabulary -> stated probability, 1 where none is stated."""
    num_unknown: int = 0
    """Tags that are no words of the vocabulary."""


@final
class VlmTagger:
    """Asks one model about every image; its replies are journaled by the engine it is given."""

    def __init__(self, config: TaggerConfig, engine: Engine) -> None:
        self._config, self._engine = config, engine
        self._prompts = PromptSet.load(PROMPTS)
        vocabulary = load_vocabulary(config.vocabulary)
        self._known = {loose(tag): tag for tag in vocabulary}
        self._prompt = "tag_listed" if config.list_vocabulary else "tag_free"
        self._system: tuple[Turn, ...] = ()
        if config.list_vocabulary:
            listed = self._prompts.render("tag_system", vocabulary="\n".join(vocabulary))
            self._system = (Turn("system", (Text(listed),)),)

    async def outcomes(self, samples: Sequence[Sample]) -> tuple[list[Outcome], dict[str, float]]:
        """One outcome per sample, in order, and counts."""
        requests = [self._request(sample) for sample in samples]
        answers = await self._engine.generate(requests) if requests else []
        self._check_outages(answers)
        counts = {"words_not_in_vocabulary": 0.0}
        outcomes = [
            self._outcome(sample, request, answer, counts)
            for sample, request, answer in zip(samples, requests, answers, strict=True)
        ]
        replies = [answer for answer in answers if isinstance(answer, Reply)]
        from_journal = sum(reply.from_journal for reply in replies)
        return outcomes, counts | {
            "images_scored": len(answers) - from_journal,
            "images_from_journal": from_journal,
            "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
            "completion_tokens": sum(reply.completion_tokens for reply in replies),
        }

    def _request(self, sample: Sample) -> Request:
        text = Text(self._prompts.render(self._prompt))
        return Request(
            turns=(*self._system, Turn("user", (ImageSlot(0), text))),
            images=sample.images[:1],
            max_new_tokens=self._config.max_new_tokens,
            schema=_SCHEMA,
        )

    def _outcome(
        self, sample: Sample, request: Request, answer: Reply | Failure, counts: dict[str, float]
    ) -> Outcome:
        call = Call(
            stage="tag",
            model=self._engine.fingerprint,
            prompt=prompt_label(self._prompts, self._prompt),
            key=request.key(self._engine.fingerprint),
            temperature=request.temperature,
            seed=request.seed,
            simulated=isinstance(answer, Reply) and answer.simulated,
        )
        asked = replace(sample, calls=(*sample.calls, call))
        if isinstance(answer, Failure):
            return Quarantined(
                id=sample.id, stage="tag", reason=answer.reason, error=printable(answer.detail), sample=asked
            )
        said = read_tags(printable(answer.text), self._known)
        if said is None:
            return unreadable(asked, "tag", "unreadable_tags", answer)
        counts["words_not_in_vocabulary"] += said.num_unknown
        found = choose_tags(best_scores(said.scores), self._config)
        return keep(with_tags(asked, found, self._config))

    def _check_outages(self, answers: Sequence[Reply | Failure]) -> None:
        """Stop rather than set everything aside because a server was down; replies that came are in the journal."""
        failed = [answer.reason for answer in answers if isinstance(answer, Failure) and answer.is_outage]
        if ENDS_RUN & set(failed) or len(failed) > max(_FEW_FAILURES, _MAX_FAILED_SHARE * len(answers)):
            raise explain(
                what=f"{len(failed)} of {len(answers)} calls for tags failed, the first with {failed[0]}",
                where="tagger.engine (configuration)",
                fix="look after the server and run the same command again",
            )


def read_tags(text: str, known: Mapping[str, str]) -> Said | None:
    """The tags in a reply: JSON as asked for, whole or cut off, or a list by lines or commas; None without any.

    `known`: loose form of a tag -> the tag.
    """
    items = _from_json(text) or _from_list(text)
    scores: dict[str, float] = {}
    num_unknown = 0
    for name, probability in items:
        tag = known.get(loose(name))
        if tag is None:
            num_unknown += 1
        else:
            scores[tag] = max(probability, scores.get(tag, 0.0))
    if scores or (items and _OBJECT.search(text)) or re.sub(r"\s", "", text) in ('{"tags":[]}', "[]"):
        return Said(scores=scores, num_unknown=num_unknown)
    return None  # a refusal or chatter: no word of it is a tag


def loose(name: str) -> str:
    """A tag's name as replies are compared by it."""
    return normal_name(name.replace("-", " "))


def _from_json(text: str) -> list[tuple[str, float]]:
    """Objects one by one, so that a reply that was cut off keeps those before the cut."""
    items = []
    for match in _OBJECT.finditer(text):
        try:
            plain = json.loads(match.group())
        except ValueError:
            continue
        name = plain.get("tag")
        if isinstance(name, str):
            items.append((name, _probability(plain.get("probability"))))
    return items


def _from_list(text: str) -> list[tuple[str, float]]:
    items = []
    for part in re.split(r"[\n,;]", re.sub(r"^.*?\"tags\"\s*:", "", text, flags=re.DOTALL)):
        if match := _ITEM.match(part):
            items.append((match.group(1), _probability(match.group(2))))
    return items


def _probability(stated: Any) -> float:
    """What was stated, as a number from 0 to 1: above 1 it is of a hundred; 1 if nothing was."""
    if stated is None or isinstance(stated, bool):
        return 1.0
    try:
        text = str(stated).strip()
        value = float(text.removesuffix("%"))
    except ValueError:
        return 1.0
    if text.endswith("%") or value > 1:
        value /= 100
    return min(max(value, 0.0), 1.0) if value == value else 1.0
