from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.quality.policy import Decision, Policy, decide
from infinity_mm.record import Score

POLICY = Policy(keep_at=8, rewrite_at=4)
WRITTEN = Policy(keep_at=8, rewrite_at=4, by="overall")


@pytest.mark.parametrize(
    ("score", "policy", "decision"),
    [
        (Score(overall=8), POLICY, ("keep", "score_high")),
        (Score(overall=7), POLICY, ("rewrite", "score_between")),
        (Score(overall=4), POLICY, ("rewrite", "score_between")),
        (Score(overall=3), POLICY, ("drop", "score_low")),
        (Score(overall=8, expected=7.999), POLICY, ("rewrite", "score_between")),
        (Score(overall=8, expected=7.999), WRITTEN, ("keep", "score_high")),
        (Score(overall=7, expected=8.0), POLICY, ("keep", "score_high")),
        (Score(overall=7, expected=8.0), WRITTEN, ("rewrite", "score_between")),
        (Score(overall=None, expected=9.0), POLICY, ("keep", "score_high")),
        (Score(overall=None, expected=9.0), WRITTEN, ("drop", "no_score")),
        (Score(overall=None), POLICY, ("drop", "no_score")),
        (None, POLICY, ("drop", "no_score")),
        (Score(overall=7), Policy(keep_at=8, rewrite_at=None), ("drop", "score_low")),
        (Score(overall=8), Policy(keep_at=8, rewrite_at=8), ("keep", "score_high")),
    ],
)
def test_the_line_is_drawn_where_the_policy_says(
    score: Score | None, policy: Policy, decision: tuple[str, str]
) -> None:
    found = decide(score, policy)
    assert (found.name, found.reason) == decision


@given(
    overall=st.none() | st.integers(1, 10),
    expected=st.none() | st.floats(1, 10),
    by=st.sampled_from(["expected", "overall"]),
    rewrite_at=st.none() | st.floats(1, 8),
)
def test_every_score_has_one_decision(
    overall: int | None, expected: float | None, by: str, rewrite_at: float | None
) -> None:
    policy = Policy(keep_at=8, rewrite_at=rewrite_at, by=by)  # type: ignore[arg-type]
    decision = decide(Score(overall=overall, expected=expected), policy)
    assert decision in {
        Decision(name="keep", reason="score_high"),
        Decision(name="rewrite", reason="score_between"),
        Decision(name="drop", reason="score_low"),
        Decision(name="drop", reason="no_score"),
    }
    assert (decision.name != "rewrite") or rewrite_at is not None


@pytest.mark.parametrize(("keep_at", "rewrite_at"), [(0, None), (11, None), (8, 9), (8, 0)])
def test_a_policy_off_the_scale_is_refused(keep_at: float, rewrite_at: float | None) -> None:
    with pytest.raises(UserError, match="policy"):
        Policy(keep_at=keep_at, rewrite_at=rewrite_at)
