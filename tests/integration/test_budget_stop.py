"""A whole run against a server that counts: it stops at the limit, never over it, and goes on to the same end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from vlm_server import VlmServer

from infinity_mm.config import load_config
from infinity_mm.errors import BudgetSpentError
from infinity_mm.runtime.budget import read_account
from infinity_mm.runtime.events import Event, UnitsUnderWay
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis

pytestmark = pytest.mark.integration
TINY = Path(__file__).parents[2] / "configs" / "synth" / "tiny.yaml"


@pytest.fixture(scope="module")
def server() -> Iterator[VlmServer]:
    with VlmServer(faults=False) as running:
        yield running


def configured(run_dir: Path, server: VlmServer, *overrides: str) -> SynthConfig:
    return load_config(
        SynthConfig,
        TINY,
        [
            f"run_dir={run_dir}",
            f"engines={{teacher: {{kind: openai, base_url: '{server.url}', model: test/vlm-7b, revision: r}}}}",
            "prompts=default",
            "ask.describe_type=true",
            "plan={tree: any_picture, seeds: tree, questions_per_image: 2}",
            "check.min_probability=null",
            "images_per_shard=2",
            *overrides,
        ],
    )


def published(summary_files: list[str]) -> list[bytes]:
    return [Path(file).read_bytes() for file in summary_files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: VlmServer) -> tuple[int, list[bytes]]:
    """Requests of a run without a limit, and what it published."""
    run_dir = tmp_path_factory.mktemp("whole")
    before = server.calls.total()
    summary = run_synthesis(configured(run_dir, server))
    sent = server.calls.total() - before
    assert read_account(str(run_dir)).requests == sent > 40
    return sent, published(summary.published)


def test_a_run_spends_its_requests_to_the_last_and_a_higher_limit_takes_it_to_the_same_end(
    server: VlmServer, whole: tuple[int, list[bytes]], tmp_path: Path
) -> None:
    needed, expected = whole
    before = server.calls.total()
    for limit in (0, 7, needed // 2, needed - 1):
        with pytest.raises(BudgetSpentError, match=f"of {limit} requests"):
            run_synthesis(configured(tmp_path, server, f"budget.requests={limit}"))
        assert server.calls.total() - before == read_account(str(tmp_path)).requests == limit
    summary = run_synthesis(configured(tmp_path, server, f"budget.requests={needed}"))
    assert server.calls.total() - before == needed
    assert published(summary.published) == expected


def test_ray_workers_together_never_pass_the_limit(
    server: VlmServer, whole: tuple[int, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, expected = whole
    monkeypatch.setenv("PYTHONPATH", str(TINY.parents[2]))
    before = server.calls.total()
    workers = ("executor.kind=ray", "executor.num_workers=2")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(BudgetSpentError):
            run_synthesis(configured(tmp_path, server, f"budget.requests={needed // 2}", *workers))
        spent = server.calls.total() - before
        assert needed // 4 <= spent <= needed // 2
        events: list[Event] = []
        summary = run_synthesis(configured(tmp_path, server, *workers), events.append)
    finally:
        ray.shutdown()
    assert server.calls.total() - before == needed
    assert published(summary.published) == expected
    told = [event for event in events if isinstance(event, UnitsUnderWay)]
    assert {event.pass_name for event in told} == {"journeys"}  # from units that are not committed yet
