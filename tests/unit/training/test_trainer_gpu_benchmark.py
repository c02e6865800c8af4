"""The benchmark for GPUs runs at toy size on a CPU."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

TINY = [
    "--size",
    "tiny",
    "--samples",
    "6",
    "--row-tokens",
    "1024",
    "--rows",
    "1",
    "--steps",
    "1",
    "--warmup",
    "0",
]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("trainer_gpu")


def tables(text: str, cells: int) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of the expected and of the measured table."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith(("| one", "| packed"))
    ]
    return rows[:cells], rows[cells:]


def test_every_cell_is_expected_and_then_measured_and_one_without_memory_says_so(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "loss_of_all_logits", fail)
    bench.main([*TINY, "--no-compile"])
    expected, measured = tables(capsys.readouterr().out, 4)
    assert [row[:3] for row in expected] == [
        ["one a row", "all logits", "no"], ["one a row", "ours", "no"], ["packed", "all logits", "no"],
        ["packed", "ours", "no"],
    ]  # fmt: skip
    assert [row[:3] for row in measured] == [row[:3] for row in expected]
    assert [row[3] == "OOM" for row in measured] == [True, False, True, False]
    assert all(float(row[4]) > 0 for row in (*expected, measured[1], measured[3]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_a_compiled_step_of_all_logits_is_measured(bench: Any) -> None:
    config, encoder, samples = bench.encoded("tiny", 2)
    options = SimpleNamespace(
        row_tokens=1024, rows=1, steps=1, warmup=0, attention=None, checkpointing=False, backend="eager"
    )
    way = bench.Way(packed=False, own_loss=False, compiled=True)
    batches = bench.steps_of(way, samples, encoder, bench.model_sizes(config), options)
    assert batches[0].input_ids.shape[1] == batches[0].num_tokens  # as wide as its own longest sample
    cells = bench.measure(way, batches[:1], config, options, torch.device("cpu")).split("|")
    assert float(cells[5]) > 0


def test_the_2b_table_is_that_of_the_formulas(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--size", "2b", "--dry", "--samples", "6"])
    out = capsys.readouterr().out
    assert "7.86 GFLOP a token" in out
    expected, measured = tables(out, 8)
    assert (len(expected), measured) == (8, [])
    for all_logits, ours in ((expected[0], expected[2]), (expected[4], expected[6])):
        assert all_logits[4] == ours[4]
        assert float(all_logits[5]) > float(ours[5])
        assert float(all_logits[7]) < float(ours[7])
