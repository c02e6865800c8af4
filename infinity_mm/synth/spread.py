"""Spread: one child per planned question of an image, and one that holds the conversation it came with.

image, [{type, examples}, ...] --> image.q0, image.q1, ..., image.source
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.exchange import drop, keep
from infinity_mm.synth.ids import question_id, source_id

STAGE = "spread"
"""Its name in the ledger. Not a `Stage`: the plan is no part of the sample."""
WRITES = frozenset({"instruction_type", "examples"})
"""Fields that a journey begins with, besides those of the image."""


def spread(image: Sample, planned: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """The children, in the order of the plan, then what came with the image."""
    came_with = [keep(replace(image, id=source_id(image.id), parents=(image.id,)))] if image.turns else []
    if not planned and not came_with:
        return [drop(image, STAGE, "no_type_planned")]
    return [
        *(
            keep(
                replace(
                    image,
                    id=question_id(image.id, number),
                    parents=(image.id,),
                    turns=(),
                    instruction_type=entry["type"],
                    examples=tuple(entry["examples"]),
                )
            )
            for number, entry in enumerate(planned)
        ),
        *came_with,
    ]
