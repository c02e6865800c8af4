"""Distinct: of several questions about one image that ask for the same thing, the first one goes on.

questions of one image --dedup.text--> distinct ones | dropped as `duplicate_question`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from infinity_mm.dedup.text import QuestionIndex
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.exchange import drop, keep
from infinity_mm.synth.stage import Context


@final
class Distinct:
    """Drops repeated questions; asks no model."""

    name = "distinct"
    reads = frozenset({"question"})
    writes = frozenset[str]()
    roles = frozenset[str]()
    prompts = frozenset[str]()
    needs_probabilities = frozenset[str]()

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """In the order of the plan, so that which one goes on does not depend on who answered first."""
        index = QuestionIndex()
        earlier = [index.add(sample.id, sample.question or "") for sample in samples]
        return [
            keep(sample)
            if same is None
            else drop(sample, self.name, "duplicate_question", detail=f"repeats {same}")
            for sample, same in zip(samples, earlier)
        ]
