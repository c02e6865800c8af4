"""Loss: how surprising a second model finds the answer, the prompt before it masked.

image, prompt, answer --scorer--> label `loss`: minus the mean log-probability of the answer's tokens, in nats
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from infinity_mm.data.regions import parts_of
from infinity_mm.engines.base import Failure, Likelihood, Scoring
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Call, Outcome, Quarantined, Sample, Turn
from infinity_mm.synth.answer import write_answer
from infinity_mm.synth.exchange import keep, printable, prompt_label, turns_for
from infinity_mm.synth.stage import Context


@final
class Loss:
    """Writes the label `loss`; a pair that cannot be scored is quarantined, never kept without a score."""

    name = "loss"
    reads = frozenset({"question", "style", "answer"})
    writes = frozenset({"labels"})
    roles = frozenset({"scorer"})
    prompts = frozenset[str]()
    """Those of the styles, which the stage `styles` declares."""
    needs_probabilities = frozenset[str]()

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """All answers about the image in one call."""
        engine = context.engines["scorer"]
        scorings = [scoring_of(sample, context.prompts) for sample in samples]
        answers = await engine.score(scorings)
        return [
            self._outcome(_with_call(sample, scoring, engine.fingerprint, context.prompts, answer), answer)
            for sample, scoring, answer in zip(samples, scorings, answers, strict=True)
        ]

    def _outcome(self, sample: Sample, answer: Likelihood | Failure) -> Outcome:
        if isinstance(answer, Failure):
            error = printable(answer.detail)
            return Quarantined(
                id=sample.id, stage=self.name, reason=answer.reason, error=error, sample=sample
            )
        return keep(sample.with_label("loss", round(-answer.mean_logprob, 6)))


def scoring_of(sample: Sample, prompts: PromptSet) -> Scoring:
    """The answer as a student will meet it: after the image and the very prompt that was answered."""
    prompt = write_answer(sample)
    turns = turns_for(sample, prompts.render(prompt.name, **prompt.fields), prompts.system)
    return Scoring(turns=(*turns, Turn("assistant", parts_of(sample.answer or ""))), images=sample.images)


def _with_call(
    sample: Sample, scoring: Scoring, model: str, prompts: PromptSet, answer: Likelihood | Failure
) -> Sample:
    call = Call(
        stage=Loss.name,
        model=model,
        prompt=prompt_label(prompts, write_answer(sample).name),
        key=scoring.key(model),
        temperature=0.0,
        seed=0,
        simulated=isinstance(answer, Likelihood) and answer.simulated,
    )
    return replace(sample, calls=(*sample.calls, call))
