from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.runtime.lock import run_lock


def write(path: Path, **owner: object) -> None:
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "born": None, "token": "t"} | owner))


def test_a_second_driver_is_refused_with_the_first_ones_name_until_it_is_done(tmp_path: Path) -> None:
    lock = str(tmp_path / "run.lock")
    me = f"process {os.getpid()} on {socket.gethostname()} is working"
    with run_lock(lock), pytest.raises(UserError, match=me), run_lock(lock):
        pass
    with run_lock(lock):
        pass
    assert not (tmp_path / "run.lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    write(tmp_path / "run.lock", pid=int(child.stdout))
    with run_lock(str(tmp_path / "run.lock")):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_later_process_with_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    write(tmp_path / "run.lock", pid=os.getpid(), born="before this process")
    with run_lock(str(tmp_path / "run.lock")):
        pass


def test_the_lock_of_another_host_is_never_taken_over(tmp_path: Path) -> None:
    write(tmp_path / "run.lock", host="elsewhere", pid=2**22 + 1)
    with (
        pytest.raises(UserError, match=r"on elsewhere(.|\n)*remove this file"),
        run_lock(str(tmp_path / "run.lock")),
    ):
        pass


def test_a_lock_that_was_taken_over_is_not_removed_by_its_first_owner(tmp_path: Path) -> None:
    with run_lock(str(tmp_path / "run.lock")):
        write(tmp_path / "run.lock", host="elsewhere")
    assert (tmp_path / "run.lock").exists()


def test_the_lock_works_on_an_object_store() -> None:
    with (
        run_lock("memory://locks/run.lock"),
        pytest.raises(UserError, match="is working"),
        run_lock("memory://locks/run.lock"),
    ):
        pass
