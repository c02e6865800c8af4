from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from synth_fakes import NANO, outcomes_of, saying, seen, told

from infinity_mm.dedup.text import normalise
from infinity_mm.record import Emitted, ImageSlot, Merged, Sample, Text, Turn, settle
from infinity_mm.synth.merge import Merge, MergeConfig, by_question, conversations

STAGE = Merge(MergeConfig())
STYLES = ("short", "brief", "detailed")


def pair(question: int, style: str, text: str | None = None, decision: str | None = "keep") -> Sample:
    return seen(
        f"a.q{question}.{style}",
        parents=(f"a.q{question}",),
        question=text or f"Question {question}?",
        style=style,
        answer=f"{style} {question}",
        decision=decision,
    )


def test_styles_of_one_question_go_to_different_conversations_in_turn() -> None:
    table, doubles = by_question([pair(q, style) for q in range(3) for style in STYLES])
    found = [[p.id.removeprefix("a.") for p in talk] for talk in conversations(table, 8)]
    assert found == [
        ["q0.short", "q1.brief", "q2.detailed"],
        ["q0.brief", "q1.detailed", "q2.short"],
        ["q0.detailed", "q1.short", "q2.brief"],
    ]
    assert doubles == []


def test_a_user_turn_is_the_prompt_that_was_answered_and_the_image_is_shown_once() -> None:
    outcomes = outcomes_of(STAGE, [pair(0, "short"), pair(1, "brief")], saying(""))
    merged = next(o.sample for o in outcomes if isinstance(o, Emitted))
    assert merged.turns == (
        Turn("user", (ImageSlot(0), Text("Question 0?\nAnswer with a word or phrase."))),
        Turn("assistant", (Text("short 0"),)),
        Turn("user", (Text("Question 1?\nExplain briefly, then answer."),)),
        Turn("assistant", (Text("brief 1"),)),
    )
    assert (merged.id, merged.parents) == ("a.c0", ("a.q0.short", "a.q1.brief"))


def test_every_pair_is_merged_into_its_conversation() -> None:
    outcomes = outcomes_of(STAGE, [pair(0, "short"), pair(0, "brief")], saying(""))
    assert [(o.id, o.into) for o in outcomes if isinstance(o, Merged)] == [
        ("a.q0.short", "a.c0"),
        ("a.q0.brief", "a.c1"),
    ]


def test_a_long_conversation_is_cut() -> None:
    stage = Merge(MergeConfig(max_turns=2))
    outcomes = outcomes_of(stage, [pair(q, "short") for q in range(5)], saying(""))
    assert [len(o.sample.turns) for o in outcomes if isinstance(o, Emitted)] == [4, 4, 2]


def test_what_was_not_kept_and_what_is_there_twice_is_dropped_by_name() -> None:
    twice = pair(1, "short", text="question 0 ?")
    outcomes = outcomes_of(STAGE, [pair(0, "short"), twice, pair(2, "short", decision="rewrite")], saying(""))
    assert sorted(told(outcomes)) == [
        ("Dropped", "decided_rewrite"),
        ("Dropped", "duplicate_pair"),
        ("Emitted", ""),
        ("Merged", "a.c0"),
    ]


@settings(deadline=None)  # a shared machine stalls now and then
@given(
    kept=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(STYLES)), unique=True, max_size=21),
    same_text=st.booleans(),
    max_turns=st.integers(1, 4),
)
def test_no_conversation_holds_a_question_twice_and_no_pair_is_lost(
    kept: list[tuple[int, str]], same_text: bool, max_turns: int
) -> None:
    pairs = [pair(q, style, text=f"Question {q // 2}?" if same_text else None) for q, style in kept]
    outcomes = outcomes_of(Merge(MergeConfig(max_turns=max_turns)), pairs, saying(""))
    settle("merge", [p.id for p in pairs], outcomes)
    question = {p.id: normalise(p.question or "") for p in pairs}
    merged = [o.sample for o in outcomes if isinstance(o, Emitted)]
    for sample in merged:
        asked = [question[id_] for id_ in sample.parents]
        assert len(asked) == len(set(asked)) <= max_turns
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * len(asked)
    ids = [id_ for sample in merged for id_ in sample.parents]
    assert len(ids) == len(set(ids))
    assert all(a.id != b.id for a, b in pairwise(merged))


def test_the_prompt_of_a_turn_is_that_of_its_style() -> None:
    assert NANO.render("answer_detailed", question="Why?") == "Why?\nExplain in detail, then answer."
