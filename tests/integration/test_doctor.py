"""`infinity-mm doctor` as a person calls it: Ray is really started, a server really asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vlm_server import VlmServer

pytestmark = pytest.mark.integration
COMMAND = [str(Path(sys.executable).parent / "infinity-mm"), "doctor", "--json"]


def doctor(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_it_starts_ray_asks_the_server_and_exits_with_1_for_a_problem(tmp_path: Path) -> None:
    with VlmServer(faults=False) as server:
        code, found = doctor("--endpoint", server.url, "--run-dir", str(tmp_path / "run"))
    assert found["ray"]["level"] == "ok", found["ray"]
    assert found["engine"]["text"].endswith("2 models: test/vlm-7b, test/llm-7b")
    assert found["run dir"]["level"] in ("ok", "warning")
    assert code == int(any(finding["level"] == "problem" for finding in found.values()))
