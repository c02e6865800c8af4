"""Questions to a committed run by id: which passes, which ledger lines, which samples, one unit in memory at a time.

run --chain--> passes in order --ids--> ledger lines, samples, file names of images
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from infinity_mm.errors import explain
from infinity_mm.record import Sample
from infinity_mm.runtime.ledger import Line
from infinity_mm.runtime.run import Run
from infinity_mm.sources.read_pass import ITEMS_FILE
from infinity_mm.storage import files
from infinity_mm.storage.manifest import Entry, Manifest, entries, read_object
from infinity_mm.storage.shards import read_jsonl

pc: Any = pyarrow.compute
"""Its functions are made when it is imported, which type checkers do not see."""
NOT_RECORDED = "not recorded"
"""Said of what a run does not know of itself."""
_LEDGER_COLUMNS = ["id", "pass", "stage", "fate", "reason", "into", "came_in", "elsewhere"]


def committed_passes(run: Run) -> list[Manifest]:
    """The committed passes, each after the one it reads; raises `UserError` if there is none."""
    found = [run.manifest(name) for name in files.names(run.path("manifest"))]
    left = {manifest.pass_name: manifest for manifest in found if manifest is not None}
    ordered: list[Manifest] = []
    while left:
        done = {manifest.pass_name for manifest in ordered}
        # What is left after a pass that was withdrawn stands at the end rather than nowhere.
        ready = [name for name, m in left.items() if m.after is None or m.after in done] or list(left)
        ordered += [left.pop(name) for name in sorted(ready)]
    if not ordered:
        raise explain(
            what="there is no run with a committed pass",
            where=run.run_dir,
            fix="give the run_dir of a run; the same synthesis command again finishes one that was interrupted",
        )
    return ordered


def run_json(run: Run) -> dict[str, Any]:
    """Resolved configuration, seed, versions and commit; empty if the run was not started by a configuration."""
    try:
        return json.loads(files.read(run.path("run.json")))
    except FileNotFoundError:
        return {}


def config_of(run: Run) -> dict[str, Any]:
    """The resolved configuration in run.json."""
    return run_json(run).get("config", {})


def history(run: Run) -> list[Run]:
    """The run and those whose samples it replays, the oldest first, as far as they are still there."""
    found = [run]
    while (before := config_of(found[0]).get("replay")) and run_json(source := Run(before["run_dir"])):
        found.insert(0, source)
    return found


def column(run: Run, entry: Entry, kind: str, columns: list[str]) -> pa.Table:
    """Some columns of a unit's Parquet object."""
    return pq.read_table(io.BytesIO(read_object(run.run_dir, entry.objects[kind])), columns=columns)


def ledger_lines(
    run: Run, manifest: Manifest, *, ids: Collection[str] = (), into: Collection[str] = ()
) -> Iterator[Line]:
    """Ledger lines about any of `ids`, or that lead into any of `into`."""
    for entry in entries(run.run_dir, manifest):
        table = column(run, entry, "ledger", _LEDGER_COLUMNS)
        keep = pc.is_in(table["id"], pa.array(sorted(ids), pa.string()))
        if into:
            parents = pc.list_parent_indices(table["into"].combine_chunks())
            hits = pc.is_in(pc.list_flatten(table["into"]), pa.array(sorted(into), pa.string()))
            rows = parents.filter(hits.combine_chunks() if isinstance(hits, pa.ChunkedArray) else hits)
            keep = pc.or_(keep, pc.is_in(pa.array(range(len(table)), pa.int64()), rows.cast(pa.int64())))
        for row in table.filter(keep).to_pylist():
            yield Line(pass_name=row.pop("pass"), into=tuple(row.pop("into")), **row)


def samples_by_id(run: Run, manifest: Manifest, ids: Collection[str]) -> dict[str, Sample]:
    """The committed samples of a pass that have one of the ids."""
    found: dict[str, Sample] = {}
    for entry in entries(run.run_dir, manifest):
        table = column(run, entry, "shard", ["id", "record"])
        rows = table.filter(pc.is_in(table["id"], pa.array(sorted(ids), pa.string())))
        for text in rows["record"].to_pylist():
            sample = Sample.from_json(text)
            found[sample.id] = sample
        if len(found) == len(ids):
            break
    return found


def item_keys(run: Run, ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Id of a listed item -> (source, key): the file name or row that it was listed under."""
    manifest = run.manifest("read")
    found: dict[str, tuple[str, str]] = {}
    for entry in entries(run.run_dir, manifest) if manifest else ():
        if f"file/{ITEMS_FILE}" not in entry.objects or len(found) == len(ids):
            continue
        for row in read_jsonl(read_object(run.run_dir, entry.objects[f"file/{ITEMS_FILE}"])):
            if row["id"] in ids:
                found[row["id"]] = (row["source"], row["key"])
    return found


def files_of_images(run: Run, image_ids: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """Id of an image -> (source, key) of every item that held its bytes, the one that was kept first."""
    unique = run.manifest("unique")
    if unique is None:
        return {}
    items: dict[str, list[str]] = {}
    for line in ledger_lines(run, unique, into=image_ids):
        for target in line.into:
            if target in image_ids:
                items.setdefault(target, []).insert(0 if line.fate == "expanded" else 1 << 30, line.id)
    keys = item_keys(run, {id_ for ids in items.values() for id_ in ids})
    return {image: [keys[id_] for id_ in ids if id_ in keys] for image, ids in items.items()}


def image_id(sample_id: str) -> str:
    """The image an id stands for: `3fa9c1….q0.short` is about `3fa9c1…`."""
    return sample_id.partition(".")[0]
