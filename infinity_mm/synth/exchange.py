"""One exchange with a model about the samples of one image: all requests in one call, one outcome per sample.

    Sample* --write--> Request* --engine.generate--> Reply|Failure* --read--> Outcome*

Trouble with one sample (a failed call, a reply nobody can use, a bug in reading it) stays with that sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
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
    seed_for,
)
from infinity_mm.synth.stage import Context

SHOWN = 300
"""Characters of a bad reply that go into the error shown to people."""


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
    ) -> list[Outcome]:
        """One outcome per sample, in order; a record in it has this call's provenance.

        `room`: tokens for one sample, where they differ; `max_new_tokens` otherwise. `unsaid`: what it means that the
        model answered nothing of use, where that is an answer too; such samples are quarantined otherwise.
        """
        engine = context.engines[self.role]
        asked: list[tuple[int, Prompt, Request]] = []
        outcomes: dict[int, Outcome] = {}
        for place, sample in enumerate(samples):
            try:
                prompt = write(sample)
                tokens = room(sample) if room else self.max_new_tokens
                asked.append((place, prompt, self._request(sample, prompt, context, tokens)))
            except UserError:
                raise  # a mistake in the configuration, the same for every image
            except Exception as error:
                outcomes[place] = quarantine(sample, self.stage, error)
        answers = await engine.generate([request for _, _, request in asked]) if asked else []
        for (place, prompt, request), answer in zip(asked, answers, strict=True):
            call = Call(
                stage=self._label,
                model=engine.fingerprint,
                prompt=prompt_label(context.prompts, prompt.name),
                key=request.key(engine.fingerprint),
                temperature=request.temperature,
                seed=request.seed,
            )
            outcomes[place] = _with_call(self._read(samples[place], answer, read, unsaid), call)
        return [outcomes[place] for place in range(len(samples))]

    @property
    def _label(self) -> str:
        return f"{self.stage}.{self.step}" if self.step else self.stage

    def _request(self, sample: Sample, prompt: Prompt, context: Context, tokens: int) -> Request:
        shown = replace(sample, images=()) if self.without_images else sample
        drawn_for = sample.parents[0] if self.without_images and sample.parents else sample.id
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
        )

    def _read(self, sample: Sample, answer: Reply | Failure, read: Read, unsaid: Unsaid | None) -> Outcome:
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
        try:
            return read(sample, answer)
        except UserError:
            raise
        except Exception as error:
            return quarantine(sample, self.stage, error)


def turns_for(sample: Sample, prompt: str, system: str) -> tuple[Turn, ...]:
    """The system prompt if there is one, then one user turn: the images first, which all calls about them share."""
    slots = tuple(ImageSlot(index) for index in range(len(sample.images)))
    user = Turn("user", (*slots, Text(prompt)))
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


def _with_call(outcome: Outcome, call: Call) -> Outcome:
    match outcome:
        case Emitted(sample=sample):
            return Emitted(sample=replace(sample, calls=(*sample.calls, call)))
        case Dropped(sample=Sample() as sample) | Quarantined(sample=Sample() as sample):
            return replace(outcome, sample=replace(sample, calls=(*sample.calls, call)))
        case _:
            return outcome
