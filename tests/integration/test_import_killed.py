"""An import killed with SIGKILL leaves nothing that looks finished; the same command again gives the whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

KILLED_AT_ROW_150 = """
import os, signal, sys
from infinity_mm.cli import main
from infinity_mm.formats.messages import MessagesWriter

write = MessagesWriter.write

def kill(self, row):
    if row.number == 150:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, row)

MessagesWriter.write = kill
main()
"""
"""A row group of 100 rows is on disk by then."""


def test_a_kill_leaves_no_folder_and_the_next_import_is_whole(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    rows = [{"id": str(number), "conversations": turns} for number in range(300)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = ["import", "llava", str(tmp_path / "rows.json"), "--out", str(tmp_path / "in"), "--json"]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_ROW_150, *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.partial", "rows.json"]
    again = subprocess.run(
        [sys.executable, "-c", "from infinity_mm.cli import main; main()", *command],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(again.stdout)["taken"] == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "rows.json"]
