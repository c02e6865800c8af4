"""Answer: what the teacher says to a question, in one style.

question, style --teacher--> answer | dropped with a reason
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

from infinity_mm.engines.base import Reply
from infinity_mm.errors import explain
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.exchange import Exchange, Prompt, Rejected, drop, keep
from infinity_mm.synth.stage import Context


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How questions are answered."""

    temperature: float = 0.0
    """0 is greedy."""
    max_new_tokens: dict[str, int] = field(
        default_factory=lambda: {"short": 64, "brief": 256, "detailed": 768}
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

    def __init__(self, config: AnswerConfig) -> None:
        """One exchange per style, because they differ in room."""
        self._config = config
        self._most = max(config.max_new_tokens.values())

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """All styles of all questions in one call."""
        exchange = Exchange(
            stage=self.name,
            role="teacher",
            max_new_tokens=self._most,
            temperature=self._config.temperature,
            words=True,
        )
        return await exchange.run(samples, context, write=write_answer, read=self._read, room=self._room)

    def _room(self, sample: Sample) -> int:
        return self._config.max_new_tokens.get(sample.style or "", self._most)

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        result = read_answer(reply, self._config)
        if isinstance(result, Rejected):
            return drop(replace(sample, answer=reply.text), self.name, result.reason)
        return keep(replace(sample, answer=result))


def write_answer(sample: Sample) -> Prompt:
    """The prompt of the sample's style: what the teacher is asked, and what a student is trained on."""
    return Prompt(name=f"answer_{sample.style}", fields={"question": sample.question or ""})


def read_answer(reply: Reply, config: AnswerConfig) -> str | Rejected:
    """The answer in a reply, or why there is none."""
    text = reply.text.strip()
    if len(text) > config.max_chars:
        return Rejected(reason="too_long")
    return text
