"""Taking pairs out of conversations again: what passes after the journeys do that look at the whole set.

unit of conversations + ids of pairs that go --without--> conversations | dropped when none is left
                                            \\--> taken_out.json, for whoever counts pairs
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from infinity_mm.record import Dropped, Emitted, ImageSlot, Outcome, Sample, canonical_json, settle
from infinity_mm.runtime.passes import UnitResult
from infinity_mm.synth.ids import is_source, num_source_turns
from infinity_mm.synth.journey_pass import read_pairs, set_aside

if TYPE_CHECKING:
    from infinity_mm.runtime.run import Run

REASONS = {"cap": "blind_over_cap", "repeats": "question_repeated"}
"""Pass -> why pairs go there."""
TAKEN_FILE = "taken_out.json"
"""Committed beside the conversations: ids of the pairs that went."""


def take_out(run: Run, pass_name: str, after: str, unit: str, gone: Collection[str]) -> UnitResult:
    """The unit's conversations without these pairs."""
    gone = frozenset(gone)
    samples = run.unit_samples(after, unit)
    pairs = {pair.id: pair for pair in read_pairs(run, "journeys", unit)} if gone else {}
    outcomes = [_outcome(sample, pass_name, gone, pairs) for sample in samples]
    ids = [sample.id for sample in samples]
    return UnitResult(
        input_ids=ids,
        samples=[outcome.sample for outcome in outcomes if isinstance(outcome, Emitted)],
        fates=settle(pass_name, ids, outcomes),
        dropped=[set_aside(outcome) for outcome in outcomes if isinstance(outcome, Dropped)],
        metrics={"conversations": len(samples), "pairs_taken_out": len(gone)},
        files={TAKEN_FILE: canonical_json(sorted(gone)).encode()},
    )


def without(sample: Sample, gone: Collection[str], pairs: Mapping[str, Sample]) -> Sample | None:
    """The conversation without some of its pairs, the image before what is now first; None if nothing is left.

    Turns that came with the image stay, and stand first.
    """
    if not any(id_ in gone for id_ in sample.parents):
        return sample
    came_with = num_source_turns(sample)
    turns, asked = list(sample.turns[:came_with]), sample.turns[came_with:]
    pair_ids = [id_ for id_ in sample.parents if not is_source(id_)]
    slots = tuple(part for part in sample.turns[0].content if isinstance(part, ImageSlot))
    for id_, user, assistant in zip(pair_ids, asked[0::2], asked[1::2], strict=True):
        if id_ not in gone:
            said = tuple(part for part in user.content if not isinstance(part, ImageSlot))
            turns += [replace(user, content=said if turns else (*slots, *said)), assistant]
    if not turns:
        return None
    parents = tuple(id_ for id_ in sample.parents if id_ not in gone)
    calls = dict.fromkeys(call for id_ in pair_ids if id_ not in gone for call in pairs[id_].calls)
    return replace(sample, parents=parents, turns=tuple(turns), calls=tuple(calls))


def taken_out(run: Run) -> dict[str, str]:
    """Pairs that are in no conversation of a run any more -> the pass that took them out."""
    found: dict[str, str] = {}
    for pass_name in REASONS:
        manifest = run.manifest(pass_name)
        for unit in () if manifest is None else manifest.units:
            found |= dict.fromkeys(json.loads(run.read_file(pass_name, unit, TAKEN_FILE)), pass_name)
    return found


def _outcome(sample: Sample, pass_name: str, gone: Collection[str], pairs: Mapping[str, Sample]) -> Outcome:
    rest = without(sample, gone, pairs)
    if rest is None:
        return Dropped(id=sample.id, stage=pass_name, reason=REASONS[pass_name], sample=sample)
    return Emitted(sample=rest)
