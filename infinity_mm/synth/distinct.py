"""Distinct: of several questions about one image that ask for the same thing, the first one goes on.

questions of one image --dedup.text--> distinct ones
                             \\--repeats--teacher, told what was asked--> a new question | `duplicate_question`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from infinity_mm.dedup.text import QuestionIndex
from infinity_mm.record import Dropped, Emitted, Outcome, Sample
from infinity_mm.synth.ask import Ask
from infinity_mm.synth.exchange import Exchange, Prompt, drop, keep
from infinity_mm.synth.stage import Context

REASON = "duplicate_question"


@dataclass(frozen=True, kw_only=True)
class DistinctConfig:
    """What happens to a question that another one about the image asks already."""

    ask_again: bool = False
    """Ask once more, telling the teacher what was asked, before it is dropped. Costs one call per repeated question."""


@final
class Distinct:
    """Drops repeated questions, or puts others in their place."""

    name = "distinct"
    needs_probabilities = frozenset[str]()

    def __init__(self, config: DistinctConfig, ask: Ask) -> None:
        """`ask` says how questions are asked for and read."""
        self._ask_again, self._ask = config.ask_again, ask
        self.reads = frozenset({"question"}) | (ask.reads if config.ask_again else frozenset())
        self.writes = frozenset({"question"} if config.ask_again else ())
        self.roles = ask.roles if config.ask_again else frozenset[str]()
        self.prompts = frozenset({"ask_again"} if config.ask_again else ())

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """In the order of the plan, so that which one goes on does not depend on who answered first."""
        index = QuestionIndex()
        first = {sample.id: index.add(sample.id, sample.question or "") for sample in samples}
        outcomes: dict[str, Outcome] = {sample.id: keep(sample) for sample in samples if not first[sample.id]}
        asked = [sample.question or "" for sample in samples if sample.id in outcomes]
        repeats = [sample for sample in samples if sample.id not in outcomes]
        if not self._ask_again:
            return [outcomes.get(s.id) or _repeated(s, f"repeats {first[s.id]}") for s in samples]
        for sample, new in zip(repeats, await self._again(repeats, asked, context), strict=True):
            if isinstance(new, Dropped):
                outcomes[sample.id] = replace(
                    new, reason=REASON, detail=f"repeats {first[sample.id]}; asked again: {new.reason}"
                )
            elif isinstance(new, Emitted) and (same := index.add(sample.id, new.sample.question or "")):
                outcomes[sample.id] = _repeated(new.sample, f"asked again, repeats {same}")
            else:
                outcomes[sample.id] = new
        return [outcomes[sample.id] for sample in samples]

    async def _again(
        self, samples: Sequence[Sample], asked: Sequence[str], context: Context
    ) -> list[Outcome]:
        """Another draw for each, all at once; those that come out alike are found by the caller."""
        config = self._ask.config
        exchange = Exchange(
            stage=self.name,
            role="teacher",
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            draw=1,
            words="question",
        )
        write, read = partial(self._write, asked), partial(self._ask.read, self.name)
        return await exchange.run(samples, context, write=write, read=read)

    def _write(self, asked: Sequence[str], sample: Sample) -> Prompt:
        listed = "\n".join(f"- {question}" for question in asked)
        return Prompt(name="ask_again", fields={**self._ask.write(sample).fields, "asked": listed})


def _repeated(sample: Sample, detail: str) -> Dropped:
    return drop(sample, Distinct.name, REASON, detail=detail)
