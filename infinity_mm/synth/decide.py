"""Decide: the policy applied to score record and labels.

score, labels --quality.policy--> keep | rewrite, both go on | dropped as `score_low`, `loss_high`, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from infinity_mm.quality.policy import Policy, decide
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.exchange import drop, keep
from infinity_mm.synth.stage import Context


@final
class Decide:
    """Writes `decision`; asks no model."""

    name = "decide"
    reads = frozenset({"score"})
    writes = frozenset({"decision"})
    roles = frozenset[str]()
    prompts = frozenset[str]()
    needs_probabilities = frozenset[str]()

    def __init__(self, policy: Policy) -> None:
        """The same policy decides about rewrites."""
        self._policy = policy

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One decision per pair."""
        return [self._decide(sample) for sample in samples]

    def _decide(self, sample: Sample) -> Outcome:
        decision = decide(sample, self._policy)
        decided = replace(sample, decision=decision.name)
        return drop(decided, self.name, decision.reason) if decision.name == "drop" else keep(decided)
