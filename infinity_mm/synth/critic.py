"""Critic: what is wrong with a question, by named rules; a judge looks at image, type and question.

image, type, question --judge--> {"reason": ..., "faults": [...]} --> label `critic`, and one per broken rule
                                                                \\--policy.critic: drop--> dropped by the first rule

Five rules are those by which PAS rejects a written complement of a prompt (it departs from the intent, overloads,
answers, demands too much, is in another language), said of a question; the sixth is that the image must answer it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from infinity_mm.engines.base import Reply
from infinity_mm.errors import explain
from infinity_mm.quality.policy import Policy
from infinity_mm.record import Outcome, Sample, canonical_json
from infinity_mm.synth.ask import type_text
from infinity_mm.synth.exchange import REPAIR, Exchange, Prompt, drop, keep
from infinity_mm.synth.stage import Context

LABEL = "critic"
"""Number of broken rules; the label of a rule is `critic_<rule>`."""
RULES = (
    "not_answerable",
    "off_type",
    "answers_itself",
    "overloaded",
    "asks_too_much",
    "other_language",
)
"""Worst first: where several are broken, the first one is the reason of the drop."""
SCHEMA = canonical_json(
    {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "faults": {"type": "array", "items": {"enum": list(RULES)}},
        },
        "required": ["reason", "faults"],
        "additionalProperties": False,
    }
)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """How questions are criticised."""

    max_new_tokens: int = 192
    """Room for a sentence and the names of rules."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 64:
            raise explain(
                what=f"a reason and faults do not fit in max_new_tokens={self.max_new_tokens}",
                where="CriticConfig (YAML section `critic`)",
                fix="set critic.max_new_tokens to at least 64, usually 192",
            )


@final
class Critic:
    """Writes labels; drops a question with a fault where the policy says so, before it costs an answer."""

    name = "critic"
    reads = frozenset({"instruction_type", "question"})
    writes = frozenset({"labels"})
    roles = frozenset({"judge"})
    prompts = frozenset({"critic", REPAIR})
    needs_probabilities = frozenset[str]()

    def __init__(self, config: CriticConfig, policy: Policy, descriptions: Mapping[str, str]) -> None:
        """`descriptions`: instruction type -> what it asks for, and of what image."""
        self._drops = policy.critic == "drop"
        self._descriptions = descriptions
        self._exchange = Exchange(
            stage=self.name, role="judge", max_new_tokens=config.max_new_tokens, schema=SCHEMA
        )

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """One call per question."""
        return await self._exchange.run(samples, context, write=self._write, read=self._read)

    def _write(self, sample: Sample) -> Prompt:
        type_ = type_text(sample.instruction_type or "", self._descriptions)
        return Prompt(name="critic", fields={"type": type_, "question": sample.question or ""})

    def _read(self, sample: Sample, reply: Reply) -> Outcome:
        said = json.loads(reply.text)
        faults = [rule for rule in RULES if rule in said["faults"]]
        labelled = with_faults(sample, faults)
        if faults and self._drops:
            return drop(labelled, self.name, f"critic_{faults[0]}", detail=said["reason"].strip())
        return keep(labelled)


def with_faults(sample: Sample, faults: Sequence[str]) -> Sample:
    """The sample with its labels: how many rules are broken, and which; none of an earlier look."""
    others = tuple(label for label in sample.labels if not label.name.startswith(f"{LABEL}_"))
    labelled = replace(sample, labels=others).with_label(LABEL, float(len(faults)))
    for rule in faults:
        labelled = labelled.with_label(f"{LABEL}_{rule}", 1.0)
    return labelled
