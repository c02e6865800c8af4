"""Rewrite: give pairs between keep and drop one more chance, and believe no rewrite unseen.

decided `rewrite` --teacher: minimal edit--> checked in code --filters, judge--> kept if good and better | dropped
decided `keep`    ------------------------------------------------------> kept as it is
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

from infinity_mm.engines.base import Reply
from infinity_mm.errors import explain
from infinity_mm.quality.policy import Policy, decide_score, label_fault
from infinity_mm.quality.verify import VerifyConfig, rewrite_fault
from infinity_mm.record import Dropped, Emitted, Outcome, Quarantined, Sample
from infinity_mm.synth import choice, grounding
from infinity_mm.synth.exchange import Exchange, Prompt, drop, keep, unreadable
from infinity_mm.synth.judge import JudgeConfig, judge_exchange, judge_prompts, read_score, write_judge
from infinity_mm.synth.stage import Context, Stage


@dataclass(frozen=True, kw_only=True)
class RewriteConfig:
    """How answers are rewritten, and which rewrites are accepted."""

    max_rounds: int = 1
    """Tries per answer, each from the same original; more than one needs a temperature above 0."""
    temperature: float = 0.0
    """0 is greedy."""
    max_new_tokens: int = 768
    """Room for the whole new answer."""
    min_gain: float = 1.0
    """Points by which the new score must exceed the old one."""
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    """What may change."""

    def __post_init__(self) -> None:
        if self.max_rounds < 1 or (self.max_rounds > 1 and self.temperature == 0):
            raise explain(
                what=f"max_rounds={self.max_rounds} with temperature={self.temperature} asks the same again or nothing",
                where="RewriteConfig (YAML section `rewrite`)",
                fix="set rewrite.max_rounds to 1, or rewrite.temperature above 0",
            )


@final
class Rewrite:
    """Replaces `answer` and `score` of samples decided `rewrite`; keeps what it replaced in `previous`."""

    name = "rewrite"
    reads = frozenset({"question", "answer", "score", "decision"})
    writes = frozenset({"answer", "score", "labels", "decision", "previous"})
    needs_probabilities = frozenset[str]()

    def __init__(
        self,
        config: RewriteConfig,
        policy: Policy,
        judge: JudgeConfig,
        filters: Sequence[Stage] = (),
        *,
        any_language: Collection[str] = (),
    ) -> None:
        """The judge and the policy are those of the first judgement; `filters` label the new answer as they did the
        old one; `any_language` as for the answer."""
        self._any_language = frozenset(any_language)
        self._config = config
        self._policy = policy
        self._judge = judge
        self._filters = filters
        self._relabelled = {stage.name for stage in filters}
        self.roles = frozenset({"teacher", "judge"}).union(*(stage.roles for stage in filters))
        self.prompts = judge_prompts(judge).union({"rewrite"}, *(stage.prompts for stage in filters))

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """Two calls per rewritten answer and round, besides those of filters; samples that are kept cost none."""
        outcomes: dict[str, Outcome] = {s.id: keep(s) for s in samples if s.decision != "rewrite"}
        waiting: list[Sample] = []
        for sample in samples:
            if sample.decision == "rewrite" and sample.style in grounding.STYLES:
                outcomes[sample.id] = drop(
                    sample, self.name, "region_not_repaired"
                )  # there are no words to correct
            elif sample.decision == "rewrite":
                waiting.append(sample)
        for draw in range(self._config.max_rounds):
            tried = await self._round(waiting, context, draw)
            outcomes |= {sample.id: outcome for sample, outcome in zip(waiting, tried, strict=True)}
            # The calls of a round in vain are provenance too.
            waiting = [
                replace(sample, calls=outcome.sample.calls)
                for sample, outcome in zip(waiting, tried, strict=True)
                if isinstance(outcome, Dropped) and outcome.sample is not None
            ]
        return [outcomes[sample.id] for sample in samples]

    async def _round(self, samples: Sequence[Sample], context: Context, draw: int) -> list[Outcome]:
        writer = Exchange(
            stage=self.name,
            role="teacher",
            max_new_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            draw=draw,
            words="answer",
            any_language=self._any_language,
        )
        outcomes = await writer.run(samples, context, write=_write, read=self._read)
        for stage in self._filters:
            outcomes = _onward(outcomes, await stage.run(_drafts(outcomes), context))
        judge = judge_exchange(self.name, self._judge, step="judge", draw=draw)
        write = partial(write_judge, self._judge)
        judged = await judge.run(_drafts(outcomes), context, write=write, read=self._compare)
        return [_as_ours(outcome, self.name) for outcome in _onward(outcomes, judged)]

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        draft = replace(
            sample,
            answer=reply.text.strip(),
            score=None,
            labels=tuple(label for label in sample.labels if label.name not in self._relabelled),
            decision=None,
            previous=(*sample.previous, (sample.answer or "", sample.score)),
        )
        fault = self._fault(sample, draft.answer or "")
        return drop(draft, self.name, fault) if fault else keep(draft)

    def _fault(self, sample: Sample, new: str) -> str | None:
        if sample.style != choice.STYLE:
            return rewrite_fault(sample.answer or "", new, self._config.verify)
        if not choice.is_option(sample.question or "", new):
            return "rewrite_not_an_option"
        return (
            "rewrite_unchanged" if new == sample.answer else None
        )  # two options need have no word in common

    def _compare(self, draft: Sample, reply: Reply) -> Outcome:
        score = read_score(reply, self._judge)
        if score is None:
            return unreadable(draft, self.name, "unreadable_score", reply)
        _, old_score = draft.previous[-1]
        new = self._policy.value(score)
        old = None if old_score is None else self._policy.value(old_score)
        judged = replace(draft, score=score, decision="drop")
        if (fault := label_fault(judged, self._policy)) is not None:
            return drop(judged, self.name, f"rewrite_{fault}")
        if decide_score(score, self._policy).name != "keep":
            return drop(judged, self.name, "rewrite_score_low")
        if new is None or old is None or new < old + self._config.min_gain:
            return drop(judged, self.name, "rewrite_not_better")
        return keep(replace(judged, decision="keep"))


def _write(sample: Sample) -> Prompt:
    return Prompt(name="rewrite", fields={"question": sample.question or "", "answer": sample.answer or ""})


def _drafts(outcomes: Sequence[Outcome]) -> list[Sample]:
    return [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]


def _onward(outcomes: Sequence[Outcome], later: Sequence[Outcome]) -> list[Outcome]:
    """The later outcomes, in order, in place of those that went on."""
    rest = iter(later)
    return [next(rest) if isinstance(outcome, Emitted) else outcome for outcome in outcomes]


def _as_ours(outcome: Outcome, stage: str) -> Outcome:
    """A draft that ends in a filter ends in this stage: its pair has been through the filter's own stage before."""
    return replace(outcome, stage=stage) if isinstance(outcome, (Dropped, Quarantined)) else outcome
