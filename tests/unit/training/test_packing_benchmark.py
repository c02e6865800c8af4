"""How full rows are, and how even the vision work, on the mixes that the benchmark draws."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from infinity_mm.data.plan import PlanConfig
from infinity_mm.training.curriculum import load_stages


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("packing")


def test_rows_of_the_second_stage_are_full_and_eight_processes_work_alike(bench: Any, tmp_path: Path) -> None:
    samples = bench.draw(5000, seed=1)
    planner = bench.make_planner(samples, tmp_path, PlanConfig(row_tokens=8192, window=4096))
    rows = bench.ours(planner, num_workers=0)
    assert sum(tokens for tokens, _ in rows) >= 0.985 * 8192 * len(rows)
    excess = bench.excesses(rows, 64, 8, balanced=True)
    assert len(excess) == 9
    assert sum(excess) <= 0.05 * len(excess)


@pytest.mark.parametrize("name", ["stage_2b", "stage_3"])
def test_the_curriculum_fills_its_rows_drops_nothing_and_keeps_the_batch(bench: Any, name: str) -> None:
    (stage,) = (s for s in load_stages(bench.CURRICULUM) if s.name == name)
    found = bench.pack_stage(stage.config, bench.draw(4096, 1, bench.STAGES[name]))
    assert found.fill >= 0.985
    assert found.dropped == 0
    assert found.mean_excess <= 0.05
    assert 0.95 * 512 < found.samples_per_step < 1.05 * 512
