from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from format_data import png

from infinity_mm.errors import UserError
from infinity_mm.formats.convert import export_data
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import Manifest, commit_pass, commit_unit
from infinity_mm.synth.publish import parquet_bytes


def published(number: int) -> dict[str, Any]:
    talk = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": f"It is {number}."}]},
    ]
    return {
        "id": f"{number}",
        "images": [{"bytes": png(number), "path": f"{number}.png"}],
        "messages": talk,
        "source": "photos",
        "licence": "CC0-1.0",
        "provenance": '{"images":[],"pairs":[]}',
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that published two files, not in the order of their names, and left a file it did not commit."""
    run = Run(str(tmp_path / "run"))
    run.start({"name": "x"}, seed=0)
    for unit, number in (("00001", 2), ("00000", 1)):
        commit_unit(
            run.run_dir,
            pass_name="publish",
            unit=unit,
            generation="g",
            objects={f"file/train-{unit}-of-00002.parquet": parquet_bytes([published(number)])},
            counts={},
        )
    return run


def commit(run: Run) -> None:
    manifest = Manifest(
        pass_name="publish", fingerprint="f", generation="g", units=("00000", "00001"), totals={}, metrics={},
        content="c", after=None, seconds=0.0,
    )  # fmt: skip
    commit_pass(run.run_dir, manifest)


def test_what_a_run_published_is_exported_in_order(run: Run, tmp_path: Path) -> None:
    commit(run)
    (tmp_path / "run" / "files" / "publish" / "left.parquet").write_bytes(parquet_bytes([published(9)]))
    export_data(tmp_path / "run", "llava", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == [
        {
            "id": f"{number}",
            "image": f"{number}.png",
            "conversations": [
                {"from": "human", "value": "<image>What?"},
                {"from": "gpt", "value": f"It is {number}."},
            ],
            "source": "photos",
            "license": "CC0-1.0",
            "provenance": {"images": [], "pairs": []},
        }
        for number in (1, 2)
    ]


def test_messages_of_a_run_are_the_published_rows_whose_provenance_has_the_pairs(
    run: Run, tmp_path: Path
) -> None:
    commit(run)
    export_data(tmp_path / "run", "messages", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "data").drop_columns(["meta"])
    rows = pq.read_table(io.BytesIO(parquet_bytes([published(1), published(2)])))
    assert table.equals(rows.drop_columns(["pairs"]))


def test_a_run_that_is_not_finished_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`publish` is not committed"):
        export_data(tmp_path / "run", "llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()
