from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_mm.record import (
    ConservationError,
    Dropped,
    Emitted,
    Fate,
    FateName,
    Merged,
    Outcome,
    Quarantined,
    Sample,
    settle,
)
from infinity_mm.runtime.ledger import (
    Line,
    Parts,
    check_pass,
    fate_counts,
    ledger_bytes,
    read_ledger,
    settle_unit,
)
from infinity_mm.runtime.passes import UnitResult


def fate(id_: str, name: FateName = "continued", *into: str, stage: str = "sieve", reason: str = "") -> Fate:
    return Fate(id=id_, stage=stage, fate=name, reason=reason, into=into)


def unit(
    ids: str, out: Sequence[str | Sample], *fates: Fate, dropped: str = "", quarantined: str = ""
) -> UnitResult:
    rows = [{"id": id_, "stage": "sieve", "reason": "bad"} for id_ in dropped]
    return UnitResult(
        input_ids=list(ids),
        samples=[Sample(id=one, images=()) if isinstance(one, str) else one for one in out],
        fates=fates,
        dropped=rows,
        quarantined=[{"id": id_, "stage": "sieve", "reason": "bad", "error": "e"} for id_ in quarantined],
    )


def settled(result: UnitResult) -> list[Line]:
    return settle_unit("ask", "00000", result)[0]


def child(id_: str, *parents: str) -> Sample:
    return Sample(id=id_, images=(), parents=parents)


EVERY_FATE = unit(
    "abcde",
    ["a", child("x", "b"), child("y", "b")],
    fate("a"),
    fate("b", "expanded", "x", "y"),
    fate("c", "dropped", reason="bad"),
    fate("d", "merged", "a"),
    fate("e", "quarantined", reason="bad"),
    fate("a", stage="judge"),
    fate("x", stage="judge"),
    dropped="c",
    quarantined="e",
)


def test_every_fate_is_counted_and_the_sums_agree() -> None:
    _, counts = settle_unit("ask", "00000", EVERY_FATE)
    assert {key: number for key, number in counts.items() if not key.startswith("fate/")} == {
        "in": 5,
        "born": 2,
        "out": 3,
        "expanded": 1,
        "dropped": 1,
        "merged": 1,
        "quarantined": 1,
    }
    assert fate_counts(counts) == [
        ("judge", "continued", "", 2),
        ("sieve", "continued", "", 1),
        ("sieve", "dropped", "bad", 1),
        ("sieve", "expanded", "", 1),
        ("sieve", "merged", "", 1),
        ("sieve", "quarantined", "bad", 1),
    ]


def test_a_ledger_part_comes_back_equal_and_does_not_show_the_order_of_ids() -> None:
    lines = settled(EVERY_FATE)
    data = ledger_bytes(lines)
    assert read_ledger(data, where="here") == lines
    fates = sorted(EVERY_FATE.fates, key=lambda f: (-ord(f.id), f.stage != "sieve"))
    turned = UnitResult(
        input_ids="edcba",
        samples=EVERY_FATE.samples[::-1],
        fates=fates,
        dropped=EVERY_FATE.dropped,
        quarantined=EVERY_FATE.quarantined,
    )
    assert ledger_bytes(settled(turned)) == data


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (unit("aa", ["a"], fate("a")), "came in twice: a"),
        (unit("a", ["a", "a"], fate("a")), "put out twice: a"),
        (unit("ab", ["a"], fate("a")), "came in and has no fate: b"),
        (unit("a", ["a"], fate("a"), fate("z")), "neither came in nor was made here: z"),
        (unit("a", [], fate("a")), "continued but was not put out: a"),
        (
            unit("a", ["a"], fate("a", "dropped", reason="bad"), dropped="a"),
            "put out, but did not continue: a",
        ),
        (unit("a", ["a", "z"], fate("a")), "put out, but did not continue: z"),
        (unit("a", ["a"], fate("a"), fate("a")), "a has two fates in one stage"),
        (
            unit("a", ["a"], fate("a", "dropped", reason="bad"), fate("a", stage="judge")),
            "a was dropped in sieve and has a fate after that",
        ),
        (unit("a", [], fate("a", "expanded")), "a was expanded into nothing"),
        (unit("a", ["x"], fate("a", "expanded", "x")), "x is new and names no parent"),
        (unit("a", [child("x", "q")], fate("a", "expanded", "x")), "x is new and names no parent"),
        (
            unit("ab", ["b"], fate("a", "expanded", "b"), fate("b")),
            "made in the pass, but came in as well: b",
        ),
        (unit("a", [], fate("a", "merged", "a")), "not into one other sample"),
        (unit("ab", [], fate("a", "merged", "b"), fate("b", "merged", "a")), "which did not go on"),
        (unit("a", [], fate("a", "dropped", reason="bad")), "1 dropped without a row"),
        (unit("a", ["a"], fate("a"), dropped="a"), "1 dropped whose row has no such fate"),
        (unit("a", [], fate("a", "quarantined", reason="bad")), "1 quarantined without a row"),
    ],
)
def test_a_unit_that_loses_doubles_or_invents_a_sample_is_refused(result: UnitResult, problem: str) -> None:
    with pytest.raises(ConservationError, match=f"pass ask, unit 00000: .*{problem}"):
        settled(result)


def test_merged_samples_may_become_a_new_one() -> None:
    lines, counts = settle_unit(
        "ask", "00000", unit("ab", [child("m", "a", "b")], fate("a", "merged", "m"), fate("b", "merged", "m"))
    )
    assert (counts["born"], counts["out"], counts["merged"]) == (1, 1, 2)
    assert not any(line.elsewhere for line in lines)


def passed(*units: UnitResult) -> Parts:
    lines = [settled(result) for result in units]
    return lambda: lines


def test_a_pass_takes_in_exactly_what_the_one_before_put_out() -> None:
    before = passed(EVERY_FATE)
    a, x, y = (unit(id_, [id_], fate(id_)) for id_ in "axy")
    check_pass("judge", passed(y, a, x), before=before)
    with pytest.raises(
        ConservationError, match="pass judge: put out by the pass before and never taken in: x, y"
    ):
        check_pass("judge", passed(a), before=before)
    z = unit("z", ["z"], fate("z"))
    with pytest.raises(ConservationError, match="taken in, but not put out by the pass before: z"):
        check_pass("judge", passed(a, x, y, z), before=before)


def test_an_id_in_two_units_is_refused() -> None:
    a = unit("a", ["a"], fate("a"))
    with pytest.raises(ConservationError, match="a came in in two units"):
        check_pass("ask", passed(a, a), before=None)
    b, c = (unit(id_, [child("x", id_)], fate(id_, "expanded", "x")) for id_ in "bc")
    with pytest.raises(ConservationError, match="x was put out in two units"):
        check_pass("ask", passed(b, c), before=None)


def test_a_merge_into_another_unit_needs_a_target_that_went_on() -> None:
    a = unit("a", [], fate("a", "merged", "b"))
    check_pass("dedup", passed(a, unit("b", ["b"], fate("b"))), before=None)
    with pytest.raises(ConservationError, match="the target of a merge did not go on: b in stage sieve"):
        check_pass("dedup", passed(a), before=None)
    with pytest.raises(
        ConservationError, match="the target of a merge did not go on: a in stage sieve, b in"
    ):
        check_pass("dedup", passed(a, unit("b", [], fate("b", "merged", "a"))), before=None)


@st.composite
def journeys(draw: st.DrawFn) -> UnitResult:
    """A few samples through a few stages that do anything that stages may do."""
    ids = [f"s{n}" for n in range(draw(st.integers(0, 6)))]
    alive = [Sample(id=id_, images=()) for id_ in ids]
    fates: list[Fate] = []
    dropped: list[dict[str, str]] = []
    quarantined: list[dict[str, str]] = []
    for number in range(draw(st.integers(1, 3))):
        stage = f"stage{number}"
        outcomes: list[Outcome] = []
        for sample in alive:
            kind = draw(st.sampled_from(["go", "go", "drop", "merge", "raise", "expand", "pair"]))
            goes_on = [o.sample.id for o in outcomes if isinstance(o, Emitted)]
            if kind == "drop":
                outcomes.append(Dropped(id=sample.id, stage=stage, reason="bad"))
                dropped.append({"id": sample.id, "stage": stage, "reason": "bad"})
            elif kind == "raise":
                outcomes.append(Quarantined(id=sample.id, stage=stage, reason="odd", error="e"))
                quarantined.append({"id": sample.id, "stage": stage, "reason": "odd"})
            elif kind == "merge" and goes_on:
                outcomes.append(Merged(id=sample.id, stage=stage, into=draw(st.sampled_from(goes_on))))
            elif kind == "expand":
                for child_number in range(draw(st.integers(1, 3))):
                    outcomes.append(Emitted(sample=child(f"{sample.id}.{number}{child_number}", sample.id)))
            elif kind == "pair":
                outcomes.append(Emitted(sample=child(f"{sample.id}.{number}m", sample.id)))
                outcomes.append(Merged(id=sample.id, stage=stage, into=f"{sample.id}.{number}m"))
            else:
                outcomes.append(Emitted(sample=sample))
        fates += settle(stage, [sample.id for sample in alive], outcomes)
        alive = [outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)]
    return UnitResult(input_ids=ids, samples=alive, fates=fates, dropped=dropped, quarantined=quarantined)


@settings(max_examples=200, deadline=None)
@given(journeys(), st.randoms())
def test_what_every_stage_settled_is_accepted_and_any_loss_from_it_is_not(
    result: UnitResult, draw: random.Random
) -> None:
    lines, counts = settle_unit("ask", "00000", result)
    assert read_ledger(ledger_bytes(lines), where="here") == lines
    assert counts["out"] == len(result.samples)
    after = [unit(s.id, [], fate(s.id, "dropped", reason="bad")) for s in result.samples]
    after = [
        replace(one, input_ids=[s.id], dropped=[{"id": s.id, "stage": "sieve", "reason": "bad"}])
        for one, s in zip(after, result.samples)
    ]
    check_pass("judge", passed(*after), before=lambda: [lines])
    if result.samples:
        lost = list(result.samples)
        lost.remove(draw.choice(lost))
        with pytest.raises(ConservationError):  # by the pass at the latest: a merge may point out of its unit
            check_pass("ask", passed(replace(result, samples=lost)), before=None)
        with pytest.raises(ConservationError):
            check_pass("judge", passed(*after[1:]), before=lambda: [lines])
    if result.input_ids:
        silent = draw.choice(list(result.input_ids))
        with pytest.raises(ConservationError, match="has no fate"):
            settle_unit("ask", "00000", replace(result, fates=[f for f in result.fates if f.id != silent]))
