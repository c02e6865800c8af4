"""From what a person types to an id: the beginning of one is enough as long as it is the only one."""

from __future__ import annotations

from collections.abc import Sequence

from infinity_mm.errors import explain
from infinity_mm.report.lookup import column, committed_passes, pc
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import entries

_MOST_MATCHES = 10


def resolve_id(run: Run, text: str) -> str:
    """The id of a sample: `3fa9.q0.short` stands for `3fa9c1….q0.short`; raises `UserError` if none or several do."""
    head, _, tail = text.partition(".")
    found: set[str] = set()
    for manifest in committed_passes(run):
        for entry in entries(run.run_dir, manifest):
            table = column(run, entry, "ledger", ["id", "into"])
            for ids in (table["id"], pc.list_flatten(table["into"])):
                hits = ids.filter(pc.starts_with(ids, pattern=head)) if len(ids) else ids
                found |= {id_ for id_ in hits.to_pylist() if id_.partition(".")[2] == tail or id_ == text}
    if text in found:
        return text
    return _only_one(sorted(found), text, what="sample", run=run)


def resolve_image(run: Run, text: str) -> str:
    """The SHA-256 of an image of the run; raises `UserError` if none or several begin so."""
    found: set[str] = set()
    for manifest in committed_passes(run):
        for entry in entries(run.run_dir, manifest):
            shas = pc.list_flatten(column(run, entry, "shard", ["image_sha"])["image_sha"])
            if len(shas):
                found |= set(shas.filter(pc.starts_with(shas, pattern=text.lower())).to_pylist())
    return _only_one(sorted(found), text, what="image", run=run)


def ids_with_image(run: Run, sha256: str) -> list[str]:
    """What the run calls an image: the start of its hash; of a page, the ids of the windows that show it."""
    manifest = run.manifest("unique")
    found: list[str] = []
    for entry in entries(run.run_dir, manifest) if manifest else ():
        table = column(run, entry, "shard", ["id", "image_sha"])
        for id_, shas in zip(table["id"].to_pylist(), table["image_sha"].to_pylist()):
            if sha256 in shas:
                found.append(id_)
    return found or [sha256[:16]]


def _only_one(found: Sequence[str], text: str, *, what: str, run: Run) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        ends = ": ids of images end without, those of questions with `.q0`, of pairs with `.q0.short`"
        raise explain(
            what=f"no {what} of this run begins with `{text}`",
            where=run.run_dir,
            fix="look ids up on the page of `infinity-mm report`" + (ends if what == "sample" else ""),
        )
    listed = "\n    ".join(found[:_MOST_MATCHES])
    more = f"\n    and {len(found) - _MOST_MATCHES} more" if len(found) > _MOST_MATCHES else ""
    raise explain(
        what=f"{len(found)} {what}s begin with `{text}`:\n    {listed}{more}",
        where=run.run_dir,
        fix="give more of it",
    )
