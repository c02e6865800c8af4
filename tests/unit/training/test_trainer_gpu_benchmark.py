"""The benchmark for GPUs runs at toy size on a CPU."""

import importlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


def test_every_way_is_measured_and_the_expectation_is_that_of_the_formulas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    bench = importlib.import_module("trainer_gpu")
    assert "7.86 GFLOP a token" in bench.expectation("2b")
    options = SimpleNamespace(
        size="tiny", checkpointing=False, samples=6, row_tokens=1024, rows=1, steps=1, warmup=0
    )
    for packed, own_loss in itertools.product((False, True), repeat=2):
        way = bench.Way(packed=packed, own_loss=own_loss, compiled=False)
        cells = bench.measure(way, options, torch.device("cpu")).split("|")
        assert float(cells[5]) > 0
