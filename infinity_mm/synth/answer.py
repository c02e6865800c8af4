"""Answer: what the teacher says to a question, in one style.

question, style --teacher--> answer | dropped with a reason
styles `box`, `point`: numbers --grounding--> one region, from 0 to 1 | dropped with a reason
style `choice`: its short answer --teacher--> wrong answers --choice.arrange--> question with options, letter and text
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from infinity_mm.data.regions import region_marker
from infinity_mm.engines.base import Reply
from infinity_mm.errors import explain
from infinity_mm.quality.hygiene import is_in_another
from infinity_mm.record import Emitted, Outcome, Sample, rng_for
from infinity_mm.synth import choice, grounding
from infinity_mm.synth.exchange import SHOWN, Exchange, Prompt, Rejected, drop, keep
from infinity_mm.synth.ids import answer_id
from infinity_mm.synth.stage import Context


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How questions are answered."""

    temperature: float = 0.0
    """0 is greedy."""
    max_new_tokens: dict[str, int] = field(
        default_factory=lambda: {"short": 64, "brief": 256, "detailed": 768, "full": 768}
    )
    """Room by style; an answer that needs more is dropped as `cut_off`, never shortened."""
    max_chars: int = 8000
    """Longer answers are dropped."""

    def __post_init__(self) -> None:
        if self.max_chars < 1 or not self.max_new_tokens or min(self.max_new_tokens.values()) < 1:
            raise explain(
                what="an answer needs room",
                where="AnswerConfig (YAML section `answer`)",
                fix="set answer.max_chars and every value of answer.max_new_tokens to at least 1",
            )


@final
class Answer:
    """Writes `answer`; drops what is too long, and what `quality.hygiene` finds useless."""

    name = "answer"
    reads = frozenset({"question", "style"})
    writes = frozenset({"answer"})
    roles = frozenset({"teacher"})
    prompts = frozenset[str]()
    """Those of the styles, which the stage `styles` declares."""
    needs_probabilities = frozenset[str]()

    def __init__(
        self,
        config: AnswerConfig,
        options: choice.ChoiceConfig | None = None,
        regions: grounding.GroundingConfig | None = None,
        *,
        any_language: Collection[str] = (),
    ) -> None:
        """`options`: how style `choice` gets them; `regions`: how styles `box` and `point` are read; `any_language`:
        types whose answers may be in any language, as what is read off a picture is."""
        self._any_language = frozenset(any_language)
        self._regions = regions or grounding.GroundingConfig()
        self._config = config
        self._choice = options or choice.ChoiceConfig()
        self._most = max(config.max_new_tokens.values())

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """All styles of all questions in one call, and one more for options."""
        exchange = Exchange(
            stage=self.name,
            role="teacher",
            max_new_tokens=self._most,
            temperature=self._config.temperature,
            words="answer",
            any_language=self._any_language,
        )
        outcomes = await exchange.run(
            samples, context, write=_write_first, read=self._read, room=self._room, drawn_for=_drawn_for
        )
        answered = [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]
        open_ = [sample for sample in answered if sample.style == choice.STYLE]
        arranged = iter(await self._arrange(open_, context) if open_ else ())
        return [
            next(arranged)
            if isinstance(outcome, Emitted) and outcome.sample.style == choice.STYLE
            else outcome
            for outcome in outcomes
        ]

    async def _arrange(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        exchange = Exchange(
            stage=self.name,
            role="teacher",
            max_new_tokens=self._choice.max_new_tokens,
            schema=self._choice.schema,
            step="options",
        )

        def read(sample: Sample, reply: Reply) -> Outcome:
            right = sample.answer or ""
            number = self._choice.num_options - 1
            wrong = choice.distinct_wrong(right, self._own_language(sample, reply, context), number)
            if len(wrong) < number:
                return drop(sample, self.name, "options_not_distinct", detail=reply.text[:SHOWN])
            rng = rng_for(context.seed, f"{self.name}.options", sample.id)
            question, answer = choice.arrange(sample.question or "", right, wrong, rng)
            return keep(replace(sample, question=question, answer=answer))

        return await exchange.run(samples, context, write=self._write_options, read=read)

    def _own_language(self, sample: Sample, reply: Reply, context: Context) -> list[str]:
        """The wrong answers, none in another language where the right one is in that of the prompts."""
        wrong: list[str] = json.loads(reply.text)["wrong"]
        script = context.prompts.script
        if script is None or sample.instruction_type in self._any_language:
            return wrong
        if is_in_another(sample.answer or "", script, "option"):
            return wrong
        return [text for text in wrong if not is_in_another(text, script, "option")]

    def _write_options(self, sample: Sample) -> Prompt:
        fields = {"question": sample.question or "", "answer": sample.answer or ""}
        return Prompt(name="options", fields={**fields, "number": str(self._choice.num_options)})

    def _room(self, sample: Sample) -> int:
        style = "short" if sample.style == choice.STYLE else sample.style
        return self._config.max_new_tokens.get(style or "", self._most)

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        result = read_answer(reply, self._config)
        if isinstance(result, Rejected):
            return drop(replace(sample, answer=reply.text), self.name, result.reason)
        if sample.style == choice.STYLE:
            option = choice.option_text(result)
            if option is None:
                return drop(replace(sample, answer=result), self.name, "answer_is_no_option")
            result = option
        if sample.style in grounding.STYLES:
            count = grounding.STYLES[sample.style]
            region = grounding.read_region(result, count, sample.images, self._regions)
            if isinstance(region, Rejected):
                return drop(replace(sample, answer=result), self.name, region.reason)
            result = region_marker(region)
        return keep(replace(sample, answer=result))


def write_answer(sample: Sample) -> Prompt:
    """The prompt of the sample's style: what the teacher is asked, and what a student is trained on."""
    return Prompt(name=f"answer_{sample.style}", fields={"question": sample.question or ""})


def _write_first(sample: Sample) -> Prompt:
    """A choice is made of the short answer."""
    return write_answer(replace(sample, style="short") if sample.style == choice.STYLE else sample)


def _drawn_for(sample: Sample) -> str:
    """The short answer that a choice is made of is the one of style `short`, and asked for once."""
    if sample.style == choice.STYLE and sample.parents:
        return answer_id(sample.parents[0], "short")
    return sample.id


def read_answer(reply: Reply, config: AnswerConfig) -> str | Rejected:
    """The answer in a reply, or why there is none."""
    text = reply.text.strip()
    if len(text) > config.max_chars:
        return Rejected(reason="too_long")
    return text
