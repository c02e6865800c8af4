"""Everything that runs hold about an image: ledger lines, fullest records, published rows.

first part of an id --ledgers of all passes--> units it was in --their files--> Family

Reads one unit at a time; only the ledgers are read whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infinity_mm.record import Sample, canonical_json
from infinity_mm.report.lookup import column, committed_passes, image_id, pc
from infinity_mm.runtime.ledger import Line, read_ledger
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import Entry, entries, read_object
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.choice import stem
from infinity_mm.synth.ids import is_source
from infinity_mm.synth.journey_pass import PAIRS_FILE
from infinity_mm.synth.stages import JourneyConfig

_NOT_YET: dict[str, Any] = {"answer": None, "style": None, "score": None, "previous": [], "decision": None}
"""What a question has not, and its pairs have."""
_OF_QUESTIONS = "critic"
"""Labels of questions begin so; others are of answers."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything there is about one image, under all ids that begin with the image's."""

    lines: Sequence[Line]
    """In the order of runs and passes and, within one id, of stages."""
    records: Mapping[str, Mapping[str, Any]]
    """Id -> {"sample", "pass", "detail"} of the fullest record there is of it."""
    published: Mapping[str, Mapping[str, Any]]
    """Id of a conversation -> {"file", "row"}."""

    def __or__(self, other: Family) -> Family:
        """Both, the other's records standing where both have one."""
        return Family(
            lines=[*self.lines, *(line for line in other.lines if line not in self.lines)],
            records={**self.records, **other.records},
            published={**self.published, **other.published},
        )


def family_of(runs: Sequence[Run], heads: Iterable[str]) -> Family:
    """Ledger lines of all ids that begin with one of the heads; then the records of the units they were in.

    `runs`: the oldest first, as `lookup.history` gives them.
    """
    wanted = sorted(set(heads))
    lines: list[Line] = []
    records: dict[str, dict[str, Any]] = {}
    published: dict[str, dict[str, Any]] = {}
    for run in runs:
        for entry in (entry for each in committed_passes(run) for entry in entries(run.run_dir, each)):
            table = column(run, entry, "ledger", ["id"])
            mask = pa.array([False] * len(table), pa.bool_())
            for head in wanted:
                mask = pc.or_(mask, pc.starts_with(table["id"], pattern=head))
            rows = pc.indices_nonzero(mask).to_pylist()
            if not rows:
                continue
            stored = entry.objects["ledger"]
            part = read_ledger(read_object(run.run_dir, stored), where=stored.path)
            lines += [part[row] for row in rows]
            records |= dict(_records(run, entry, wanted))
            if entry.pass_name == "publish":
                published |= _published(run, entry, {part[row].id for row in rows})
    return Family(lines=lines, records=records, published=published)


def _records(run: Run, entry: Entry, heads: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    table = column(run, entry, "shard", ["id", "record"])
    for id_, text in zip(table["id"].to_pylist(), table["record"].to_pylist()):
        if image_id(id_) in heads:
            yield id_, {"sample": json.loads(text), "pass": entry.pass_name, "detail": ""}
    marks = [f'"{head}'.encode() for head in heads]
    for kind in (f"file/{PAIRS_FILE}", "dropped", "quarantined"):
        if kind not in entry.objects:
            continue
        data = read_object(run.run_dir, entry.objects[kind])
        # Only lines that name the image are parsed: a unit may hold thousands.
        near = b"\n".join(line for line in data.split(b"\n") if any(mark in line for mark in marks))
        for row in read_jsonl(near):
            if image_id(row["id"]) in heads:
                detail = row.get("error") or row.get("detail") or ""
                record = {"sample": row["sample"], "pass": entry.pass_name, "detail": detail, "row": row}
                yield row["id"], record


def _published(run: Run, entry: Entry, ids: set[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in entry.objects:
        if kind.startswith("file/") and kind.endswith(".parquet"):
            for number, id_ in enumerate(column(run, entry, kind, ["id"])["id"].to_pylist()):
                if id_ in ids:
                    name = kind.removeprefix("file/")
                    found[id_] = {"file": name, "row": number, "path": run.path(entry.objects[kind].path)}
    return found


def ancestors(id_: str, lines: Sequence[Line]) -> list[str]:
    """The id, then what it was made from, back to the image."""
    parents: dict[str, list[str]] = {}
    for line in lines:
        for child in line.into:
            parents.setdefault(child, []).append(line.id)
    chain = [id_]
    for one in chain:
        chain += [parent for parent in parents.get(one, []) if parent not in chain]
    return chain


def record_of(id_: str, family: Family, stages: Sequence[str] = ()) -> Mapping[str, Any]:
    """Its own record; of a question that went on, which has none, what its pairs carry on of it.

    `stages`: those of the run in order, the default ones if it does not say.
    """
    if id_ in family.records:
        return family.records[id_]
    if is_source(id_):  # it is the image's own record, with the conversation that came with it
        image = family.records.get(image_id(id_))
        return {"sample": {**image["sample"], "id": id_}} if image else {}
    for child, record in sorted(family.records.items()):
        if ".q" in id_ and child.startswith(f"{id_}.") and record["sample"]:
            return {"sample": _question(id_, record["sample"], stages), "detail": ""}
    return {}


def _question(id_: str, pair: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """A pair as it was before there were answers."""
    names = list(stages or JourneyConfig().stages)
    later = names[names.index("styles") :] if "styles" in names else []
    return {
        **pair,
        **_NOT_YET,
        "id": id_,
        "question": stem(Sample.from_json(canonical_json(pair))),
        "labels": [label for label in pair["labels"] if label["name"].startswith(_OF_QUESTIONS)],
        "calls": [call for call in pair["calls"] if call["stage"].partition(".")[0] not in later],
    }


def fates_of(id_: str, family: Family) -> list[dict[str, Any]]:
    """Its ledger lines, in order."""
    return [
        {"pass": line.pass_name, "stage": line.stage, "fate": line.fate}
        | ({"reason": line.reason} if line.reason else {})
        | ({"into": list(line.into)} if line.into else {})
        for line in family.lines
        if line.id == id_
    ]


def end_of(id_: str, family: Family) -> dict[str, Any]:
    """How it ended; a merged sample leads on to what it became part of."""
    lines = [line for line in family.lines if line.id == id_]
    end: dict[str, Any] = {"fate": "continued", "stage": "", "reason": "", "into": []}
    if lines:
        last = lines[-1]
        end = {"fate": last.fate, "stage": last.stage, "reason": last.reason, "into": list(last.into)}
    if id_ in family.published and end["fate"] == "continued":
        end["published"] = family.published[id_]
    elif end["fate"] == "continued":
        end["reason"] = (
            f"put out by pass {lines[-1].pass_name}" if lines else "made, and no pass has read it yet"
        )
    elif end["fate"] == "merged":
        target = end["into"][0]
        if any(line.id == target for line in family.lines) or target in family.published:
            end["then"] = {"id": target, **end_of(target, family)}
    return end
