"""The policy: a pure function of score record, labels and cut-offs, so that a cut-off changes without asking again.

score --keep_at, rewrite_at--> keep | rewrite | drop
label `loss` --max_loss--> goes on | drop          label `blind` --blind--> goes on | drop
label `critic` --critic--> goes on | drop
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infinity_mm.errors import explain
from infinity_mm.record import Sample, Score


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Where the line is drawn between keep, rewrite and drop. Filters label; they drop only where this says so."""

    keep_at: float = 8.0
    """Kept from this score on (Infinity-MM keeps 8 and above)."""
    rewrite_at: float | None = 4.0
    """Rewritten from this score up to `keep_at`; dropped below it. null: nothing is rewritten."""
    by: Literal["expected", "overall"] = "expected"
    """`expected`: the mean over the judge's probabilities where the engine gives them, else the written score.
    `overall`: always the written score."""
    max_loss: float | None = None
    """Dropped above this loss, in nats per token (Infinity-MM: 2.5). null: the loss is a label and nothing more."""
    blind: Literal["label", "drop", "cap"] = "label"
    """What happens to pairs whose answer was found without the image: nothing; all are dropped; or, in a pass after
    the journeys, as many as it takes to leave `max_blind_share`."""
    max_blind_share: float = 0.2
    """With `cap`, the largest share of such pairs among the kept ones of an instruction type."""

    critic: Literal["label", "drop"] = "label"
    """What happens to questions in which the stage `critic` found a fault."""
    max_repeats: int | None = None
    """Of a question asked of several images so many uses stay, the first in id order; the others are taken out in a
    pass after the journeys. null: a question may be asked of every image."""

    def __post_init__(self) -> None:
        if self.max_repeats is not None and self.max_repeats < 1:
            raise explain(
                what=f"max_repeats={self.max_repeats} leaves no question",
                where="Policy (YAML section `policy`)",
                fix="set policy.max_repeats to at least 1, or to null to let questions repeat",
            )
        if not 1 <= self.keep_at <= 10:
            raise explain(
                what=f"keep_at={self.keep_at} is outside the judge's scale",
                where="Policy (YAML section `policy`)",
                fix="set policy.keep_at between 1 and 10, usually 7 to 9",
            )
        if self.rewrite_at is not None and not 1 <= self.rewrite_at <= self.keep_at:
            raise explain(
                what=f"rewrite_at={self.rewrite_at} is not between 1 and keep_at={self.keep_at}",
                where="Policy (YAML section `policy`)",
                fix="lower policy.rewrite_at, or set it to null to rewrite nothing",
            )
        if self.max_loss is not None and not self.max_loss > 0:
            raise explain(
                what=f"max_loss={self.max_loss} keeps nothing",
                where="Policy (YAML section `policy`)",
                fix="set policy.max_loss above 0, usually 1.5 to 3, or to null to drop nothing by it",
            )
        if not 0 <= self.max_blind_share < 1:
            raise explain(
                what=f"max_blind_share={self.max_blind_share} is not a share that can be reached",
                where="Policy (YAML section `policy`)",
                fix="set policy.max_blind_share to at least 0 and below 1, usually 0.1 to 0.3",
            )

    @property
    def needs(self) -> frozenset[str]:
        """Labels without which it cannot decide."""
        return frozenset({"loss"} if self.max_loss is not None else ()) | (
            {name for name in ("blind", "critic") if getattr(self, name) != "label"}
        )

    def value(self, score: Score) -> float | None:
        """The figure that is compared with the cut-offs."""
        return score.value if self.by == "expected" else score.overall


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a pair, and why."""

    name: Literal["keep", "rewrite", "drop"]
    reason: str
    """Short snake_case name, counted in reports."""


def decide(sample: Sample, policy: Policy) -> Decision:
    """Keep, rewrite or drop; every sample has exactly one answer. What a label condemns is not rewritten."""
    decision = decide_score(sample.score, policy)
    if decision.name == "drop":
        return decision
    reason = label_fault(sample, policy)
    return decision if reason is None else Decision(name="drop", reason=reason)


def label_fault(sample: Sample, policy: Policy) -> str | None:
    """The label that has the sample dropped; one that the policy needs and nobody measured does so too."""
    if policy.max_loss is not None:
        loss = sample.label("loss")
        if loss is None or loss > policy.max_loss:
            return "no_loss" if loss is None else "loss_high"
    if policy.blind == "drop":
        blind = sample.label("blind")
        if blind != 0:
            return "no_blind" if blind is None else "blind_answerable"
    if policy.critic == "drop":
        critic = sample.label("critic")
        if critic != 0:
            return "no_critic" if critic is None else "critic_fault"
    return None


def decide_score(score: Score | None, policy: Policy) -> Decision:
    """What the score alone says."""
    value = None if score is None else policy.value(score)
    if value is None:
        return Decision(name="drop", reason="no_score")
    if value >= policy.keep_at:
        return Decision(name="keep", reason="score_high")
    if policy.rewrite_at is not None and value >= policy.rewrite_at:
        return Decision(name="rewrite", reason="score_between")
    return Decision(name="drop", reason="score_low")
