"""The fault drill in short: five of the runs of `benchmarks/faults.py`, one of them on a Ray cluster of two nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from drill import StubServer, Undisturbed, prepared  # pyright: ignore[reportMissingImports]
from faults import disturbed  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StubServer, Undisturbed]]:
    with prepared(tmp_path_factory.mktemp("drill"), num_images=12, delay_s=0.03) as server_and_run:
        yield server_and_run


@pytest.mark.parametrize("fault", ["driver_middle", "truncated", "disk_journal", "shard_flip", "worker"])
def test_a_disturbed_run_ends_with_the_bytes_of_the_undisturbed_one(
    undisturbed: tuple[StubServer, Undisturbed], fault: str
) -> None:
    result = disturbed(fault, *undisturbed)
    assert result.is_same, result.story
    assert result.sums_agree
    assert result.asked_again == 0
    assert result.resent <= result.bound
    assert result.num_calls >= undisturbed[1].num_calls > 50
