"""The policy: a pure function of score record and cut-offs, so that a cut-off changes without asking a model again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infinity_mm.errors import explain
from infinity_mm.record import Score


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Where the line is drawn between keep, rewrite and drop."""

    keep_at: float = 8.0
    """Kept from this score on (Infinity-MM keeps 8 and above)."""
    rewrite_at: float | None = 4.0
    """Rewritten from this score up to `keep_at`; dropped below it. null: nothing is rewritten."""
    by: Literal["expected", "overall"] = "expected"
    """`expected`: the mean over the judge's probabilities where the engine gives them, else the written score.
    `overall`: always the written score."""

    def __post_init__(self) -> None:
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

    def value(self, score: Score) -> float | None:
        """The figure that is compared with the cut-offs."""
        return score.value if self.by == "expected" else score.overall


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a pair, and why."""

    name: Literal["keep", "rewrite", "drop"]
    reason: str
    """Short snake_case name, counted in reports."""


def decide(score: Score | None, policy: Policy) -> Decision:
    """Keep, rewrite or drop; every score record has exactly one answer."""
    value = None if score is None else policy.value(score)
    if value is None:
        return Decision(name="drop", reason="no_score")
    if value >= policy.keep_at:
        return Decision(name="keep", reason="score_high")
    if policy.rewrite_at is not None and value >= policy.rewrite_at:
        return Decision(name="rewrite", reason="score_between")
    return Decision(name="drop", reason="score_low")
