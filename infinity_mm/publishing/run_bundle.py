"""A finished run as a data set: its published files, a card counted from them, a strip of samples.

manifest of pass `publish` --> data/train-*.parquet --facts, strip--> README.md, assets/samples.webp, infinity_mm.json
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from infinity_mm.errors import explain
from infinity_mm.publishing.bundle import CARD, Bundle, File, made_file, make_bundle
from infinity_mm.publishing.dataset_card import STRIP, dataset_card
from infinity_mm.publishing.facts import facts_of
from infinity_mm.publishing.strip import strip
from infinity_mm.runtime.run import Run
from infinity_mm.storage import files, manifest
from infinity_mm.synth.publish_pass import refuse_simulated

PASS = "publish"


def run_bundle(run_dir: str, *, repo: str) -> Bundle:
    """Everything of a run that is published; `run_dir` is a path or a URL.

    Every data file is read once and compared with its manifest entry. Raises `UserError` if the run is not finished,
    has no rows, or a file is not what was committed.
    """
    run = Run(run_dir)
    committed = run.manifest(PASS)
    if committed is None or not files.exists(run.path("summary.json")):
        raise explain(
            what="this run is not finished: its data set is not cut, or it has no summary.json",
            where=run.run_dir,
            fix="run the same synthesis command again",
        )
    refuse_simulated(run)
    total = committed.totals["out"]
    if total == 0:
        raise explain(
            what="this run published no rows",
            where=run.run_dir,
            fix="look in summary.json, or `infinity-mm report`, for what dropped them",
        )
    data = [
        File(
            path=f"data/{kind.removeprefix('file/')}",
            bytes=stored.bytes,
            sha256=stored.sha256,
            load=partial(manifest.read_object, run.run_dir, stored),
        )
        for entry in manifest.entries(run.run_dir, committed)
        for kind, stored in sorted(entry.objects.items())
        if kind.startswith("file/")
    ]
    facts = facts_of((_bytes(file) for file in data), total)
    summary = _json(run, "summary.json")
    card = dataset_card(
        repo=repo,
        name=str(summary.get("name") or run.run_dir.rpartition("/")[2]),
        facts=facts,
        data_files=[(file.path, file.bytes) for file in data],
        summary=summary,
        run=_json(run, "run.json"),
    )
    pictures = strip([sample.image for sample in facts.samples])
    return make_bundle("dataset", [*data, made_file(CARD, card.encode()), made_file(STRIP, pictures)])


def _bytes(file: File) -> bytes:
    content = file.load()
    assert isinstance(content, bytes)
    return content


def _json(run: Run, name: str) -> dict[str, Any]:
    return json.loads(files.read(run.path(name)))
