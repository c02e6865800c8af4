from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.record import (
    Call,
    ConservationError,
    Dropped,
    Emitted,
    Fate,
    ImageRef,
    ImageSlot,
    Merged,
    Outcome,
    Quarantined,
    Region,
    Sample,
    Score,
    Tag,
    Text,
    Turn,
    digest,
    rng_for,
    settle,
)


def sample(id_: str, *parents: str) -> Sample:
    return Sample(id=id_, images=(), parents=parents)


def test_every_input_gets_its_fate_in_input_order() -> None:
    outcomes: list[Outcome] = [
        Dropped(id="b", stage="s", reason="why"),
        Emitted(sample=sample("a")),
        Emitted(sample=sample("c.0", "c")),
        Emitted(sample=sample("c.1", "c")),
        Quarantined(id="d", stage="s", reason="raised", error="ValueError: x"),
    ]
    assert settle("s", ["a", "b", "c", "d"], outcomes) == [
        Fate(id="a", stage="s", fate="continued"),
        Fate(id="b", stage="s", fate="dropped", reason="why"),
        Fate(id="c", stage="s", fate="expanded", into=("c.0", "c.1")),
        Fate(id="d", stage="s", fate="quarantined", reason="raised"),
    ]


def test_merged_samples_name_an_emitted_target() -> None:
    outcomes: list[Outcome] = [
        Merged(id="a", stage="m", into="a+b"),
        Merged(id="b", stage="m", into="a+b"),
        Emitted(sample=sample("a+b", "a", "b")),
    ]
    assert [fate.into for fate in settle("m", ["a", "b"], outcomes)] == [("a+b",), ("a+b",)]


@pytest.mark.parametrize(
    ("ids", "outcomes", "message"),
    [
        (["a"], [], "no fate for 1 of 1"),
        (["a", "a"], [Emitted(sample=sample("a"))], "came in twice"),
        (["a"], [Emitted(sample=sample("a")), Dropped(id="a", stage="s", reason="x")], "two fates"),
        (["a"], [Emitted(sample=sample("b"))], "names no input as its parent"),
        (["a"], [Emitted(sample=sample("a")), Emitted(sample=sample("a"))], "emitted twice"),
        (["a"], [Dropped(id="z", stage="s", reason="x")], "was not an input"),
        (["a"], [Merged(id="a", stage="s", into="z")], "was not emitted"),
        (
            ["a"],
            [Emitted(sample=sample("a")), Emitted(sample=sample("b", "a"))],
            "both continued and expanded",
        ),
    ],
)
def test_a_stage_that_loses_doubles_or_invents_a_sample_is_stopped(
    ids: list[str], outcomes: list[Outcome], message: str
) -> None:
    with pytest.raises(ConservationError, match=message):
        settle("s", ids, outcomes)


def test_a_full_sample_survives_json_exactly() -> None:
    score = Score(overall=9, expected=8.75, uncertainty=0.1, flags=("x",))
    full = Sample(
        id="a",
        images=(ImageRef(sha256="0" * 64, uri="/x", width=3, height=2, page=1, phash="f" * 16),),
        parents=("p",),
        turns=(Turn("user", (ImageSlot(0), Text("where?"), Region(0, (0.25, 0.5, 0.75, 1.0)))),),
        tags=(Tag(name="cat", score=0.5),),
        instruction_type="a/b/c",
        examples=("q1", "q2"),
        question="what?",
        style="short",
        answer="x",
        score=score,
        previous=(("y", score), ("z", None)),
        decision="keep",
        calls=(Call(stage="ask", model="m", prompt="p", key="k", temperature=0.5, seed=1),),
    )
    assert Sample.from_json(full.to_json()) == full


@given(st.text(), st.text(), st.lists(st.text()))
def test_any_text_survives_json(question: str, answer: str, parents: list[str]) -> None:
    before = Sample(id="a", images=(), parents=tuple(parents), question=question, answer=answer)
    assert Sample.from_json(before.to_json()) == before


def test_draws_depend_on_seed_stage_and_sample_alone() -> None:
    assert rng_for(1, "ask", "a").random() == rng_for(1, "ask", "a").random()
    draws = {
        rng_for(*key).random() for key in [(1, "ask", "a"), (2, "ask", "a"), (1, "b", "a"), (1, "ask", "b")]
    }
    assert len(draws) == 4


def test_a_digest_does_not_confuse_neighbouring_parts() -> None:
    assert digest("ab", "c") != digest("a", "bc")
