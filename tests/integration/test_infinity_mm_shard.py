"""An Infinity-MM shard is read, synthesised from, traced and written back with the made turns."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from infinity_mm.config import load_config
from infinity_mm.data.readers.tars import TarSource
from infinity_mm.formats.convert import extend_data
from infinity_mm.report.lookup import NOT_RECORDED
from infinity_mm.report.trace import trace_sample
from infinity_mm.runtime.run import Run
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.windtunnel import world

pytestmark = pytest.mark.integration

TINY = Path(__file__).parents[2] / "configs" / "synth" / "tiny.yaml"
BROUGHT = [{"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "A drawing."}]


def make_shard(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            data = world.png_bytes(world.sample_scene(world_seed=1, index=number, split="train"))
            entry = {
                "id": f"r{number}", "source": "drawn", "conversations": BROUGHT, "image": f"{number}.png",
                "ram++_tags": ["shapes", "red"], "ram++_tags_score": [6.5, 1.9], "phash": number,
            }  # fmt: skip
            for suffix, content in (
                ("json", json.dumps(entry).encode()),
                ("jpg", data if number != 2 else b""),
            ):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_a_shard_goes_through_a_run_and_comes_back_with_what_was_made(tmp_path: Path) -> None:
    make_shard(tmp_path / "mm" / "stage4" / "part" / "0.tar")
    source = json.dumps({"kind": "infinity_mm", "path": str(tmp_path / "mm"), "licence": "CC-BY-SA-4.0"})
    overrides = [
        f"run_dir={tmp_path / 'run'}",
        f"read.sources=[{source}]",
        "policy={keep_at: 1, rewrite_at: null}",  # what is made matters here, not how good it is
        "stages=[ask, distinct, check, styles, answer, judge, decide, merge]",
        "plan.questions_per_image=1",
    ]
    summary = run_synthesis(load_config(SynthConfig, TINY, overrides))
    assert summary.dropped["read"] == {"text_only": 1}
    run = Run(str(tmp_path / "run"))
    came_first = 0
    for sample in run.samples("publish"):
        trace = trace_sample(run, sample.id)
        parts = [part["from"] for part in trace["parts"]]
        assert parts.count("source") == (sample.id.endswith(".c0"))
        came_first += parts[0] == "source"
        assert trace["image"]["tagger"] == "came with the image"
        assert [tag["name"] for tag in trace["image"]["tags"]] == ["shapes", "red"]
        assert trace["image"]["files"][0]["key"].startswith("stage4/part/0.tar/0000")
        assert trace["image"]["images"][0]["source"] == "infinity_mm/drawn"
        for part in trace["parts"]:
            for call in part.get("calls", ()):
                assert NOT_RECORDED not in (call["reply"], call["prompt_text"])
                assert call["revision"].startswith("weights ")
    assert came_first == 2

    counts = extend_data(tmp_path / "run", tmp_path / "mm", tmp_path / "out")
    assert counts["rejected"] == 2 - counts["extended"]  # an image of which nothing was kept
    assert counts["extended"] >= 1
    before, after = TarSource(path=str(tmp_path / "mm")), TarSource(path=str(tmp_path / "out"))
    assert len(after) == len(before) + counts["added"]
    made = sum(len(after[number].messages) for number in range(len(after)))
    assert made - sum(len(before[number].messages) for number in range(len(before))) == counts["turns"]
