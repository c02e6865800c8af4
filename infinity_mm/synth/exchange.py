"""One exchange with a model about the samples of one image: all requests in one call, one outcome per sample.

    Sample* --write--> Request* --engine.generate--> Reply|Failure* --fit to be read?--> read --> Outcome*
                                                          free words: hygiene, else dropped
                                                          JSON: by schema, else one call to repair it

Trouble with one sample (a failed call, a reply nobody can use, a bug in reading it) stays with that sample.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from infinity_mm.data.regions import parts_of
from infinity_mm.engines.base import Engine, Failure, Reply, Request
from infinity_mm.engines.json_reply import BadJson, parse_json_reply
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.hygiene import Words, reply_fault
from infinity_mm.record import (
    Call,
    Dropped,
    Emitted,
    ImageSlot,
    Outcome,
    Quarantined,
    Sample,
    Text,
    Turn,
    canonical_json,
    seed_for,
)
from infinity_mm.synth.stage import Context

SHOWN = 300
"""Characters of a bad reply that go into the error shown to people."""
REPAIR = "repair"
"""The prompt of the call that mends JSON; a stage with a schema declares it beside its own."""
_BROKEN_CHARS = 4000
"""Of a reply that is no JSON, so much is shown to the model that is to mend it."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Why a reply is of no use; the other result of the pure functions that read replies."""

    reason: str
    """Short snake_case name, counted in reports."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of the run's prompt set with its fields."""

    name: str
    fields: Mapping[str, str]


Write = Callable[[Sample], Prompt]
Read = Callable[[Sample, Reply], Outcome]
Room = Callable[[Sample], int]
Unsaid = Callable[[Sample, Failure], Outcome]
DrawnFor = Callable[[Sample], str]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How a stage talks to a model."""

    stage: str
    role: Literal["teacher", "judge"]
    max_new_tokens: int
    temperature: float = 0.0
    choices: tuple[str, ...] = ()
    draw: int = 0
    """Number of the try; each has its own seed."""
    words: Words | None = None
    """What the reply is, if it is free words for a sample: useless ones (`quality.hygiene`) are dropped unread."""
    any_language: Collection[str] = ()
    """Types of question whose replies are not looked at for their language."""
    schema: str | None = None
    """Canonical JSON schema: `read` then gets the value as canonical JSON, whatever stood around it."""
    step: str = ""
    """Which call it is, for a stage that makes several: part of its provenance and seeds."""
    without_images: bool = False
    """Leaves the images out. The question alone is asked then, so pairs with one parent get one seed and one reply."""

    async def run(
        self,
        samples: Sequence[Sample],
        context: Context,
        *,
        write: Write,
        read: Read,
        room: Room | None = None,
        unsaid: Unsaid | None = None,
        drawn_for: DrawnFor | None = None,
    ) -> list[Outcome]:
        """One outcome per sample, in order; a record in it has this call's provenance.

        `room`: tokens for one sample, where they differ; `max_new_tokens` otherwise. `unsaid`: what it means that the
        model answered nothing of use, where that is an answer too; such samples are quarantined otherwise.
        `drawn_for`: the id that a sample's seed is drawn for, its own otherwise; equal requests are one call.
        """
        engine = context.engines[self.role]
        asked: list[tuple[int, Prompt, Request]] = []
        outcomes: dict[int, Outcome] = {}
        for place, sample in enumerate(samples):
            try:
                prompt = write(sample)
                tokens = room(sample) if room else self.max_new_tokens
                whose = drawn_for(sample) if drawn_for else self._whose(sample)
                asked.append((place, prompt, self._request(sample, prompt, context, tokens, whose)))
            except UserError:
                raise  # a mistake in the configuration, the same for every image
            except Exception as error:
                outcomes[place] = quarantine(sample, self.stage, error)
        answers = await engine.generate([request for _, _, request in asked]) if asked else []
        calls = [
            (_call(engine, self._label, context.prompts, prompt.name, request, answer),)
            for (_, prompt, request), answer in zip(asked, answers, strict=True)
        ]
        if self.schema is not None:
            requests = [request for _, _, request in asked]
            answers, calls = await self._as_json(requests, answers, calls, context)
        for (place, _, _), answer, made in zip(asked, answers, calls, strict=True):
            outcomes[place] = _with_calls(self._read(samples[place], answer, context, read, unsaid), made)
        return [outcomes[place] for place in range(len(samples))]

    async def _as_json(
        self,
        requests: Sequence[Request],
        answers: Sequence[Reply | Failure],
        calls: Sequence[tuple[Call, ...]],
        context: Context,
    ) -> tuple[list[Reply | Failure], list[tuple[Call, ...]]]:
        """Replies whose text is a value of the schema and nothing else; what is none is asked for once more."""
        found = [self._value(answer) for answer in answers]
        made = list(calls)
        broken = [place for place, answer in enumerate(found) if isinstance(answer, BadJson)]
        repairs = [self._repair(requests[i], answers[i], found[i], context) for i in broken]
        engine = context.engines[self.role]
        mended = await engine.generate(repairs) if repairs else []
        for place, request, answer in zip(broken, repairs, mended, strict=True):
            made[place] += (
                _call(engine, f"{self._label}.{REPAIR}", context.prompts, REPAIR, request, answer),
            )
            found[place] = self._value(answer)
        return [
            Failure(reason="unreadable_json", detail=str(answer)) if isinstance(answer, BadJson) else answer
            for answer in found
        ], made

    def _value(self, answer: Reply | Failure) -> Reply | Failure | BadJson:
        if isinstance(answer, Failure):
            return answer
        assert self.schema is not None
        try:
            return replace(answer, text=canonical_json(parse_json_reply(answer.text, self.schema)))
        except BadJson as bad:
            if answer.finish_reason == "length":  # it would be cut again
                return Failure(reason="cut_off", detail=answer.text[-SHOWN:])
            return bad

    def _repair(
        self, request: Request, answer: Reply | Failure, problem: Reply | Failure | BadJson, context: Context
    ) -> Request:
        """The same conversation, gone on with: what was said, what is wrong with it, and the schema."""
        assert isinstance(answer, Reply)
        assert self.schema is not None
        asked = context.prompts.render(REPAIR, problem=str(problem), schema=self.schema)
        turns = (Turn("assistant", (Text(answer.text[:_BROKEN_CHARS]),)), Turn("user", (Text(asked),)))
        return replace(request, turns=(*request.turns, *turns))

    @property
    def _label(self) -> str:
        return f"{self.stage}.{self.step}" if self.step else self.stage

    def _whose(self, sample: Sample) -> str:
        return sample.parents[0] if self.without_images and sample.parents else sample.id

    def _request(
        self, sample: Sample, prompt: Prompt, context: Context, tokens: int, drawn_for: str
    ) -> Request:
        shown = replace(sample, images=()) if self.without_images else sample
        return Request(
            turns=turns_for(
                shown, context.prompts.render(prompt.name, **prompt.fields), context.prompts.system
            ),
            images=shown.images,
            max_new_tokens=tokens,
            temperature=self.temperature,
            seed=seed_for(context.seed, self._label, drawn_for, self.draw),
            draw=self.draw,
            choices=self.choices,
            schema=self.schema,
        )

    def _read(
        self, sample: Sample, answer: Reply | Failure, context: Context, read: Read, unsaid: Unsaid | None
    ) -> Outcome:
        if isinstance(answer, Failure) and answer.is_said and unsaid is not None:
            return unsaid(sample, answer)
        if isinstance(answer, Failure):
            return Quarantined(
                id=sample.id,
                stage=self.stage,
                reason=answer.reason,
                error=printable(answer.detail),
                sample=sample,
            )
        if printable(answer.text) != answer.text:
            return unreadable(sample, self.stage, "invalid_unicode", answer)
        if self.words is not None:
            script = None if sample.instruction_type in self.any_language else context.prompts.script
            if fault := reply_fault(answer, script=script, words=self.words):
                return drop(sample, self.stage, fault, detail=answer.text[:SHOWN])
        try:
            return read(sample, answer)
        except UserError:
            raise
        except Exception as error:
            return quarantine(sample, self.stage, error)


def turns_for(sample: Sample, prompt: str, system: str) -> tuple[Turn, ...]:
    """The system prompt if there is one, then one user turn: the images first, which all calls about them share."""
    slots = tuple(ImageSlot(index) for index in range(len(sample.images)))
    user = Turn("user", (*slots, *parts_of(prompt)))
    return (Turn("system", (Text(system),)), user) if system else (user,)


def prompt_label(prompts: PromptSet, name: str) -> str:
    """`set/name@hash`, as provenance has it; of a set read by path the folder's name only, which is the same
    on every machine."""
    return f"{Path(prompts.name).name}/{name}@{prompts.hash(name)}"


def keep(sample: Sample) -> Emitted:
    """The sample goes on."""
    return Emitted(sample=sample)


def drop(sample: Sample, stage: str, reason: str, detail: str = "") -> Dropped:
    """The sample ends here; its record stays for a person to look at."""
    return Dropped(id=sample.id, stage=stage, reason=reason, sample=sample, detail=detail)


def quarantine(sample: Sample, stage: str, error: Exception) -> Quarantined:
    """An exception, set aside with its class and message."""
    return Quarantined(
        id=sample.id,
        stage=stage,
        reason=type(error).__name__,
        error=printable(f"{type(error).__name__}: {error}"),
        sample=sample,
    )


def unreadable(sample: Sample, stage: str, reason: str, reply: Reply) -> Quarantined:
    """A reply that says nothing we can read, set aside with its beginning."""
    shown = printable(reply.text[:SHOWN])
    return Quarantined(
        id=sample.id, stage=stage, reason=reason, error=f"the reply was {shown!r}", sample=sample
    )


def printable(text: str) -> str:
    """The text, with lone surrogates (half an emoji) replaced: no file format takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _call(
    engine: Engine, stage: str, prompts: PromptSet, prompt: str, request: Request, answer: Reply | Failure
) -> Call:
    fingerprint = engine.fingerprint
    return Call(
        stage=stage,
        model=fingerprint,
        prompt=prompt_label(prompts, prompt),
        key=request.key(fingerprint),
        temperature=request.temperature,
        seed=request.seed,
        simulated=isinstance(answer, Reply) and answer.simulated,
    )


def _with_calls(outcome: Outcome, calls: tuple[Call, ...]) -> Outcome:
    match outcome:
        case Emitted(sample=sample):
            return Emitted(sample=replace(sample, calls=(*sample.calls, *calls)))
        case Dropped(sample=Sample() as sample) | Quarantined(sample=Sample() as sample):
            return replace(outcome, sample=replace(sample, calls=(*sample.calls, *calls)))
        case _:
            return outcome
