"""What several processes find out about their samples ends in one ledger."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from test_sft import launch

from infinity_mm.data.ledger import account
from infinity_mm.data.quarantine import Listed, read_quarantine


@pytest.mark.integration
def test_a_picture_that_breaks_off_is_quarantined_whoever_reads_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((48, 48), 90).save(buffer, "PNG")
    for i in range(24):
        cut = len(buffer.getvalue()) // 2 if i % 6 == 5 else None
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue()[:cut])
    rows = [
        {
            "id": str(i),
            "image": f"{i}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "noise " * i},
            ],
        }
        for i in range(1, 24)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = f"{{path: {tmp_path / 'data.jsonl'}, image_folder: {tmp_path}}}"
    data = f"data=[{{kind: llava_json, name: web, options: {options}}}]"
    run = launch(
        tmp_path / "run", 2, "micro_batch_rows=1", "row_tokens=192", f"index_dir={tmp_path / 'index'}", data
    )
    assert run.returncode == 0, run.stderr
    found = account(tmp_path / "run" / "ledger.jsonl")
    assert found.steps == 6
    assert found.line() in run.stdout
    listed = read_quarantine(tmp_path / "run" / "quarantine.jsonl")
    assert {(entry.source, entry.id) for entry in listed} == {("web", str(i)) for i in (5, 11, 17, 23)}
    assert all(isinstance(entry, Listed) and entry.reason.startswith("truncated") for entry in listed)
