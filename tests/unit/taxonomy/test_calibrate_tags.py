from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinity_mm.cli import app
from infinity_mm.errors import UserError
from infinity_mm.taxonomy.calibrate import calibrate
from infinity_mm.taxonomy.clip_tagger import ClipTagger
from infinity_mm.taxonomy.tagger import TaggerConfig
from infinity_mm.windtunnel import tags, world


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn scenes with their true tags; the picture of another one is missing."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [{"image": "gone.png", "tags": ["table"]}]
    for index in range(40):
        scene = world.sample_scene(world_seed=3, index=index, split="train")
        (folder / f"{index}.png").write_bytes(world.png_bytes(scene))
        rows.append({"image": f"{index}.png", "tags": [*tags.tags(scene), "a tag of nobody"]})
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "labels.jsonl"


def test_a_calibration_is_fitted_used_and_refused_for_another_vocabulary(
    labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibration.json"
    command = ["calibrate-tags", str(labels), "--out", str(out), "--model", "nano-clip", "--json"]
    done = CliRunner().invoke(
        app, [*command, "--vocabulary", "windtunnel", "--prompt", "{tag}"], catch_exceptions=False
    )
    figures = json.loads(done.stdout)
    assert (figures["images"], figures["skipped"]) == (40, {"unreadable_file": 1})
    assert figures["tags_not_in_vocabulary"] == {"a tag of nobody": 40}
    assert figures["tags_with_a_curve"] > 3
    assert figures["brier_after"] < 0.1

    plain, calibrated = TaggerConfig(), TaggerConfig(calibration=str(out))
    picture = world.render(world.sample_scene(world_seed=3, index=0, split="train"))
    taggers = [ClipTagger(plain), ClipTagger(calibrated)]
    before, after = (tagger.scores([picture])[0] for tagger in taggers)
    assert before.keys() == after.keys()
    assert before != after
    assert taggers[0].fingerprint != taggers[1].fingerprint
    with pytest.raises(UserError, match="another tagger, vocabulary or prompt"):
        ClipTagger(TaggerConfig(calibration=str(out), prompt="a {tag}"))


def test_a_faulty_row_and_a_tagger_without_logits_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"image": "a.png", "tags": "dog"}\n')
    with pytest.raises(UserError, match="line 1"):
        calibrate(file, TaggerConfig(), out=tmp_path / "c.json")
    with pytest.raises(UserError, match="gives no logits"):
        calibrate(file, TaggerConfig(model="none"), out=tmp_path / "c.json")
