from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.quality.policy import Decision, Policy, decide, decide_score
from infinity_mm.record import Sample, Score

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
    found = decide_score(score, policy)
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
    decision = decide_score(Score(overall=overall, expected=expected), policy)
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


def pair(score: float = 9, **labels: float) -> Sample:
    sample = Sample(id="a.q0.short", images=(), score=Score(overall=None, expected=score))
    for name, value in labels.items():
        sample = sample.with_label(name, value)
    return sample


@pytest.mark.parametrize(
    ("sample", "policy", "decision"),
    [
        (pair(loss=9.0, blind=1.0), Policy(), ("keep", "score_high")),
        (pair(), Policy(), ("keep", "score_high")),
        (pair(loss=2.5), Policy(max_loss=2.5), ("keep", "score_high")),
        (pair(loss=2.51), Policy(max_loss=2.5), ("drop", "loss_high")),
        (pair(score=5, loss=2.51), Policy(max_loss=2.5), ("drop", "loss_high")),
        (pair(score=5, loss=2.5), Policy(max_loss=2.5), ("rewrite", "score_between")),
        (pair(score=2, loss=9.0), Policy(max_loss=2.5), ("drop", "score_low")),
        (pair(blind=0.0), Policy(max_loss=2.5), ("drop", "no_loss")),
        (pair(blind=1.0), Policy(blind="drop"), ("drop", "blind_answerable")),
        (pair(blind=0.0), Policy(blind="drop"), ("keep", "score_high")),
        (pair(loss=0.1), Policy(blind="drop"), ("drop", "no_blind")),
        (pair(blind=1.0), Policy(blind="cap"), ("keep", "score_high")),
    ],
)
def test_labels_drop_only_where_the_policy_says_so(
    sample: Sample, policy: Policy, decision: tuple[str, str]
) -> None:
    found = decide(sample, policy)
    assert (found.name, found.reason) == decision


@pytest.mark.parametrize("wrong", [{"max_loss": 0}, {"max_blind_share": 1.0}, {"max_blind_share": -0.1}])
def test_a_policy_that_keeps_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="policy"):
        Policy(**wrong)  # type: ignore[arg-type]
