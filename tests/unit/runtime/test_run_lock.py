from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.runtime.lock import run_lock
from infinity_mm.storage import files


def write(folder: Path, number: int = 1, **owner: object) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{number:08d}.json"
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "born": None, "token": "t"} | owner))
    return file


def owners(folder: Path) -> dict[str, int]:
    return {file.name: json.loads(file.read_text())["pid"] for file in sorted(folder.iterdir())}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_second_driver_is_refused_with_the_first_ones_name_until_it_is_done(lock: Path) -> None:
    me = f"process {os.getpid()} on {socket.gethostname()} is working"
    with run_lock(str(lock)), pytest.raises(UserError, match=me), run_lock(str(lock)):
        pass
    with run_lock(str(lock)):
        pass
    assert list(lock.iterdir()) == []


def test_a_lock_that_cannot_be_removed_does_not_hide_why_the_run_ended(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        with run_lock(str(lock)):
            monkeypatch.setattr(files, "remove", fails)
            raise ValueError("why")

    def fails(url: str) -> None:
        raise OSError("the disk is gone")

    with pytest.raises(ValueError, match="why"):
        work()
    assert "could not remove the lock" in caplog.text


def test_the_lock_of_a_dead_process_is_taken_over(lock: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    write(lock, pid=int(child.stdout))
    with run_lock(str(lock)):
        assert owners(lock) == {"00000002.json": os.getpid()}


def test_a_later_process_with_the_same_number_is_not_the_owner(lock: Path) -> None:
    write(lock, pid=os.getpid(), born="before this process")
    with run_lock(str(lock)):
        pass


def test_the_lock_of_another_host_is_taken_over_only_when_it_has_fallen_silent(lock: Path) -> None:
    file = write(lock, host="elsewhere", pid=2**22 + 1)
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.02):
            number += 1
            files.write(str(file), json.dumps({**json.loads(file.read_text()), "beat": number}).encode())

    other = threading.Thread(target=beat)
    other.start()
    try:
        with (
            pytest.raises(UserError, match=r"on elsewhere(.|\n)*remove this file"),
            run_lock(str(lock), lease_s=30),
        ):
            pass
    finally:
        stop.set()
        other.join()
    with run_lock(str(lock), lease_s=0.2):
        assert owners(lock) == {"00000002.json": os.getpid()}


def test_the_owner_shows_that_it_lives_and_learns_that_it_was_replaced(lock: Path) -> None:
    with run_lock(str(lock), beat_s=0.01) as held:
        file = lock / "00000001.json"
        while "beat" not in json.loads(file.read_text()):
            time.sleep(0.005)
        held.check()
        write(lock, 2, host="elsewhere", pid=7)
        while held._successor is None:
            time.sleep(0.005)
        with pytest.raises(UserError, match="process 7 on elsewhere has taken over"):
            held.check()
    assert owners(lock) == {"00000002.json": 7}


def test_of_many_drivers_that_find_the_same_dead_owner_one_goes_on(lock: Path) -> None:
    write(lock, pid=os.getpid(), born="before this process")
    results: list[str] = []
    gate, done = threading.Barrier(8), threading.Barrier(8)

    def drive() -> None:
        gate.wait()
        try:
            with run_lock(str(lock)):
                results.append("owner")
                done.wait(20)
        except UserError:
            results.append("refused")
            done.wait(20)

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["owner"] + ["refused"] * 7


def test_a_store_that_overwrites_what_is_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(url: str, data: bytes) -> bool:
        files.write(url, data)
        return True

    monkeypatch.setattr(files, "create", careless)
    with pytest.raises(UserError, match="ignores `If-None-Match"), run_lock("memory://careless/lock"):
        pass
    assert files.names("memory://careless/lock") == []


def test_the_lock_works_on_an_object_store() -> None:
    with (
        run_lock("memory://locks/lock"),
        pytest.raises(UserError, match="is working"),
        run_lock("memory://locks/lock"),
    ):
        pass
