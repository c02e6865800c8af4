"""The ledger: what became of every id, checked as sets, unit by unit and from pass to pass.

    UnitResult --settle_unit--> Line* + counts --> ledger part --check_pass--> the law holds, or ConservationError

Every input of a pass ends in exactly one way, every output came in or was made from something that did, and what
one pass puts out is exactly what the next one takes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infinity_mm.record import ConservationError, Fate, FateName
from infinity_mm.runtime.passes import UnitResult
from infinity_mm.storage.shards import read_table, table_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One fate as it is stored."""

    id: str
    pass_name: str
    stage: str
    fate: FateName
    reason: str
    into: tuple[str, ...]
    came_in: bool
    """Whether the id is an input of the pass, not one that was made in it."""
    elsewhere: bool
    """Whether it was merged into a sample of another unit."""


def settle_unit(pass_name: str, unit: str, result: UnitResult) -> tuple[list[Line], dict[str, int]]:
    """Check one unit and return its ledger lines, in id order, and its counts.

    Counts: `in` and `born` on one side, `out`, `expanded`, `dropped`, `merged` and `quarantined` on the other, and
    `fate/<stage>/<fate>/<reason>` for every line. Raises `ConservationError`.
    """
    where = f"pass {pass_name}, unit {unit}"
    inputs = _unique(result.input_ids, f"{where}: came in twice")
    outputs = _unique([sample.id for sample in result.samples], f"{where}: put out twice")
    by_id: dict[str, list[Fate]] = {}
    for fate in result.fates:
        by_id.setdefault(fate.id, []).append(fate)
    last = {id_: fates[-1] for id_, fates in by_id.items()}
    for id_, fates in by_id.items():
        _check_history(where, id_, fates)

    expanded_into = {child for fate in result.fates if fate.fate == "expanded" for child in fate.into}
    _none(expanded_into & inputs, f"{where}: made in the pass, but came in as well")
    here = inputs | outputs | set(by_id) | expanded_into
    targets = {fate.into[0] for fate in result.fates if fate.fate == "merged"}
    born = (expanded_into | (targets & here)) - inputs
    for fate in result.fates:
        target = by_id.get(fate.into[0], []) if fate.fate == "merged" else []
        if any(other.stage == fate.stage and other.fate != "continued" for other in target):
            raise ConservationError(f"{where}: {fate.id} was merged into {fate.into[0]}, which did not go on")

    _none(inputs - set(by_id), f"{where}: came in and has no fate")
    _none(set(by_id) - inputs - born, f"{where}: has a fate but neither came in nor was made here")
    alive = {id_ for id_ in inputs | born if id_ not in last or last[id_].fate == "continued"}
    _none(alive - outputs, f"{where}: continued but was not put out")
    _none(outputs - alive, f"{where}: put out, but did not continue")
    for sample in result.samples:
        if sample.id not in inputs and not (sample.parents and set(sample.parents) <= inputs | born):
            raise ConservationError(f"{where}: {sample.id} is new and names no parent in this unit")
    _check_rows(where, "dropped", last, result.dropped)
    _check_rows(where, "quarantined", last, result.quarantined)

    lines = [
        Line(
            id=fate.id,
            pass_name=pass_name,
            stage=fate.stage,
            fate=fate.fate,
            reason=fate.reason,
            into=fate.into,
            came_in=fate.id in inputs,
            elsewhere=fate.fate == "merged" and fate.into[0] not in here,
        )
        for fate in sorted(
            result.fates, key=lambda fate: fate.id
        )  # stable: the stages of one id stay in order
    ]
    ends = Counter(fate.fate for fate in last.values() if fate.fate != "continued")
    counts = {"in": len(inputs), "born": len(born), "out": len(outputs)}
    counts |= {fate: ends[fate] for fate in COUNTS[3:]}
    counts |= Counter(f"fate/{fate.stage}/{fate.fate}/{fate.reason}" for fate in result.fates)
    check_sums(where, counts)
    return lines, counts


COUNTS = ("in", "born", "out", "expanded", "dropped", "merged", "quarantined")
"""The counts that must add up: the first two against the others."""


def check_sums(where: str, counts: Mapping[str, int]) -> None:
    """Raise `ConservationError` unless what came in and was made equals what went on and ended."""
    came = sum(counts[key] for key in COUNTS[:2])
    gone = sum(counts[key] for key in COUNTS[2:])
    if came != gone:
        raise ConservationError(f"{where}: {came} samples came in or were made, {gone} went on or ended")


def fate_counts(counts: Mapping[str, int]) -> list[tuple[str, str, str, int]]:
    """Return (stage, fate, reason, number) for the `fate/...` entries of counts or totals."""
    found = [(key.split("/", 3), number) for key, number in counts.items() if key.startswith("fate/")]
    return sorted((stage, fate, reason, number) for (_, stage, fate, reason), number in found)


def ledger_bytes(lines: Sequence[Line]) -> bytes:
    """Return one ledger part as Parquet."""
    columns = {
        "id": pa.array([line.id for line in lines], pa.string()),
        "pass": pa.array([line.pass_name for line in lines], pa.string()),
        "stage": pa.array([line.stage for line in lines], pa.string()),
        "fate": pa.array([line.fate for line in lines], pa.string()),
        "reason": pa.array([line.reason for line in lines], pa.string()),
        "into": pa.array([list(line.into) for line in lines], pa.list_(pa.string())),
        "came_in": pa.array([line.came_in for line in lines], pa.bool_()),
        "elsewhere": pa.array([line.elsewhere for line in lines], pa.bool_()),
    }
    return table_bytes(columns, dictionary=["pass", "stage", "fate", "reason"])


def read_ledger(data: bytes, *, where: str) -> list[Line]:
    """Return the lines of one ledger part."""
    rows = read_table(data, where=where).to_pylist()
    return [Line(pass_name=row.pop("pass"), into=tuple(row.pop("into")), **row) for row in rows]


Parts = Callable[[], Iterable[Sequence[Line]]]
"""Reads the ledger parts of a pass, unit by unit; called again only to name ids in an error."""
_Select = Callable[[Sequence[Line]], set[str]]


def check_pass(pass_name: str, parts: Parts, *, before: Parts | None) -> None:
    """Check a whole pass: no id in two units, every merge target exists, inputs are the outputs of the pass before.

    Ids are held as 16-byte hashes, so that tens of millions fit in the driver. Raises `ConservationError`.
    """
    came_in, put_out, wanted = _keys(parts, _inputs, _outputs, _targets_elsewhere)
    for keys, select, what in ((came_in, _inputs, "came in"), (put_out, _outputs, "was put out")):
        doubles = keys[:-1][keys[1:] == keys[:-1]]
        if doubles.size:
            raise ConservationError(f"pass {pass_name}: {_named(parts, select, doubles)} {what} in two units")
    missing = _without(np.unique(wanted), parts, _continued) if wanted.size else wanted
    if missing.size:
        ids = _named(parts, _targets_elsewhere, missing)
        raise ConservationError(f"pass {pass_name}: the target of a merge did not go on: {ids}")
    if before is not None:
        (offered,) = _keys(before, _outputs)
        lost, invented = np.setdiff1d(offered, came_in), np.setdiff1d(came_in, offered)
        if lost.size:
            ids = _named(before, _outputs, lost)
            raise ConservationError(f"pass {pass_name}: put out by the pass before and never taken in: {ids}")
        if invented.size:
            ids = _named(parts, _inputs, invented)
            raise ConservationError(f"pass {pass_name}: taken in, but not put out by the pass before: {ids}")


def _inputs(lines: Sequence[Line]) -> set[str]:
    return {line.id for line in lines if line.came_in}


def _outputs(lines: Sequence[Line]) -> set[str]:
    last = {line.id: line for line in lines}
    return {id_ for id_, line in last.items() if line.fate == "continued"} | _born_without_line(lines)


def _born_without_line(lines: Sequence[Line]) -> set[str]:
    """Ids made by the last stage that touched them: they go on and have no fate of their own."""
    made = {
        id_
        for line in lines
        if line.fate in ("expanded", "merged") and not line.elsewhere
        for id_ in line.into
    }
    return made - {line.id for line in lines}


def _targets_elsewhere(lines: Sequence[Line]) -> set[str]:
    return {f"{line.into[0]} in stage {line.stage}" for line in lines if line.elsewhere}


def _continued(lines: Sequence[Line]) -> set[str]:
    """With the stage: two samples merged into each other by one stage would both be lost."""
    return {f"{line.id} in stage {line.stage}" for line in lines if line.fate == "continued"}


def _keys(parts: Parts, *selects: _Select) -> list[NDArray[np.bytes_]]:
    """Sorted hashes of what each function selects, in one reading of the parts."""
    found = [bytearray() for _ in selects]
    for lines in parts():
        for select, keys in zip(selects, found):
            for id_ in select(lines):
                keys += _key(id_)
    arrays = [np.frombuffer(keys, dtype="S16") for keys in found]
    for array in arrays:
        array.sort()  # in place: there may be tens of millions
    return arrays


def _without(wanted: NDArray[np.bytes_], parts: Parts, select: _Select) -> NDArray[np.bytes_]:
    """Those of some different, sorted hashes that a function selects in no part; the parts are read once more."""
    is_found = np.zeros(len(wanted), bool)
    for lines in parts():
        (keys,) = _keys(lambda lines=lines: [lines], select)
        at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
        is_found[at[wanted[at] == keys]] = True
    return wanted[~is_found]


def _key(id_: str) -> bytes:
    return blake2b(id_.encode(), digest_size=16).digest()


def _named(parts: Parts, select: _Select, keys: NDArray[np.bytes_], most: int = 3) -> str:
    """The ids behind some keys: the first few, and how many there are."""
    wanted = set(keys.tolist())  # numpy strips zero bytes at the end
    ids = sorted({id_ for lines in parts() for id_ in select(lines) if _key(id_).rstrip(b"\0") in wanted})
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more


def _check_history(where: str, id_: str, fates: Sequence[Fate]) -> None:
    stages = [fate.stage for fate in fates]
    if len(set(stages)) != len(stages):
        raise ConservationError(f"{where}: {id_} has two fates in one stage ({', '.join(stages)})")
    for fate in fates[:-1]:
        if fate.fate != "continued":
            raise ConservationError(
                f"{where}: {id_} was {fate.fate} in {fate.stage} and has a fate after that"
            )
    end = fates[-1]
    if end.fate == "expanded" and not end.into:
        raise ConservationError(f"{where}: {id_} was expanded into nothing")
    if end.fate == "merged" and (len(end.into) != 1 or end.into[0] == id_):
        raise ConservationError(f"{where}: {id_} was merged into {end.into}, not into one other sample")


def _check_rows(
    where: str, fate: FateName, last: Mapping[str, Fate], rows: Iterable[Mapping[str, object]]
) -> None:
    """What is set aside for people is exactly what the ledger says was set aside."""
    expected = {(end.id, end.stage, end.reason) for end in last.values() if end.fate == fate}
    written = {(row.get("id"), row.get("stage"), row.get("reason")) for row in rows}
    for what, found in (
        ("without a row", expected - written),
        ("whose row has no such fate", written - expected),
    ):
        if found:
            example = sorted(found, key=repr)[0]
            raise ConservationError(
                f"{where}: {len(found)} {fate} {what}, first (id, stage, reason) = {example}"
            )


def _unique(ids: Sequence[str], problem: str) -> set[str]:
    _none({id_ for id_, number in Counter(ids).items() if number > 1}, problem)
    return set(ids)


def _none(ids: set[str], problem: str) -> None:
    if ids:
        raise ConservationError(f"{problem}: {', '.join(sorted(ids)[:3])} ({len(ids)} in all)")
