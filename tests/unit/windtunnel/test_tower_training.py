"""The vision tower is trained on its own, from the command line, and what it writes is a tower."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from infinity_mm.errors import UserError
from infinity_mm.model.vision_tower import VisionTower
from infinity_mm.windtunnel.patch_labels import HEADS
from infinity_mm.windtunnel.tower_training import TowerTraining

ROOT = Path(__file__).parents[3]
SHAPE = {
    "vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "patch_px": 8, "scale_px": 64,
    "text_hidden": 32, "text_layers": 1, "text_heads": 2, "text_kv_heads": 1, "text_mlp": 32,
}  # fmt: skip


def test_the_command_trains_a_tower_that_learns_and_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tower.yaml"
    config.write_text(
        yaml.safe_dump({"output_dir": str(tmp_path / "out"), "shape": SHAPE, "precision": "fp32"})
    )
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    import tower  # pyright: ignore[reportMissingImports]

    overrides = ["steps=12", "batch_images=4", "log_every_steps=1", "num_held_out_scenes=8", "threads=1"]
    tower.main(["--config", str(config), *overrides, "schedule.warmup_steps=0"])
    sys.modules.pop("tower")

    rows = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["images"] == 48
    assert sum(row["color"] for row in rows[-3:]) < sum(row["color"] for row in rows[:3])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"].keys() == HEADS.keys()
    assert metrics["training"]["images"] == 48
    loaded = VisionTower.from_pretrained(tmp_path / "out")
    shapes = torch.tensor([[0, 4, 4]])
    assert loaded(torch.zeros(16, 3 * 8 * 8), shapes).shape == (16, 32)


def test_a_run_without_images_or_steps_is_refused() -> None:
    with pytest.raises(UserError, match="batch_images=0, steps=1"):
        TowerTraining(output_dir="x", batch_images=0, steps=1)
