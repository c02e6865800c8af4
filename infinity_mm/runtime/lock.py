"""One driver per run directory: a folder of numbered lock files, of which the highest names the owner.

    no file, or the highest one's owner is dead --create <number + 1>, the first of several wins--> owner
    owner --every BEAT_S--> writes its file again;  sees a higher number --> it has been replaced

Only "create unless it is there" is needed, which a local disk and an object store both have. An owner on this host is
known to be dead when its process is gone; one elsewhere when its file has not changed for LEASE_S, measured by the
watcher's own clock.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from infinity_mm.errors import UserError, explain
from infinity_mm.storage import files

BEAT_S = 10.0
"""Seconds between two signs of life."""
LEASE_S = 60.0
"""Seconds without one after which an owner on another host counts as dead."""
_log = logging.getLogger(__name__)


@final
class Held:
    """A lock that is held; a thread keeps showing that its owner lives."""

    def __init__(self, folder: str, number: int, owner: dict[str, Any], beat_s: float) -> None:
        self._folder, self._number, self._owner = folder, number, owner
        self._beat_s = beat_s
        self._stop = threading.Event()
        self._successor: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `UserError` if another driver has taken the run over, which it may after a long silence of this one."""
        if self._successor is not None:
            raise explain(
                what=f"process {self._successor['pid']} on {self._successor['host']} has taken over this run, "
                "because this process gave no sign of life for too long",
                where=self._folder,
                fix="let it go on; nothing that was committed is lost",
            )

    def release(self) -> None:
        """Stop beating and remove the file; a successor's file stays."""
        self._stop.set()
        self._thread.join()
        files.remove(_url(self._folder, self._number))

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(self._beat_s):
            beats += 1
            try:
                higher = [number for number in _numbers(self._folder) if number > self._number]
                if higher:
                    self._successor = _owner(self._folder, higher[-1])
                    if self._successor is not None:
                        return
                else:
                    files.write(_url(self._folder, self._number), _bytes(self._owner | {"beat": beats}))
            except (
                Exception
            ):  # an outage: the next beat may come through, and every commit is safe without the lock
                _log.warning("could not renew the lock of this run directory", exc_info=True)


@contextmanager
def run_lock(folder: str, *, beat_s: float = BEAT_S, lease_s: float = LEASE_S) -> Iterator[Held]:
    """Hold the lock of a run directory, or raise `UserError` naming the process that does.

    Two drivers on one run cost double work and nothing else: of two commits of a unit the first wins. The lock is
    there so that this does not go unnoticed.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
    mine["token"] = secrets.token_hex(8)
    held = Held(folder, _take(folder, mine, lease_s), mine, beat_s)
    try:
        yield held
    finally:
        try:
            held.release()
        except Exception:  # the run's own error, if there is one, is what must be seen
            _log.warning(
                "could not remove the lock of this run; the next driver takes it over", exc_info=True
            )


def _take(folder: str, mine: dict[str, Any], lease_s: float) -> int:
    """The number of the lock file that is now ours."""
    while True:
        numbers = _numbers(folder)
        if numbers:
            owner = _owner(folder, numbers[-1])
            if owner is None:
                continue  # released between the two looks
            if not _is_dead(owner) and not _is_silent(folder, numbers[-1], owner, lease_s):
                raise _refusal(folder, numbers[-1], owner)
        number = numbers[-1] + 1 if numbers else 1
        if not files.create(_url(folder, number), _bytes(mine)):
            owner = _owner(folder, number)
            # With our token: a client that tried twice, and the first try had gone through.
            if owner is None or owner["token"] != mine["token"]:
                continue
        if _numbers(folder)[-1:] != [number]:  # we were slow: others have come and gone meanwhile
            files.remove(_url(folder, number))
            continue
        if files.create(_url(folder, number), b"{}"):
            files.remove(_url(folder, number))
            raise explain(
                what="the object store writes a file that is to be written only if it is not there: it ignores "
                "`If-None-Match: *`, and two workers could overwrite each other's results",
                where=folder,
                fix="use a store with conditional puts (S3 since 2024, MinIO, Ceph and R2 in recent versions)",
            )
        for old in numbers:
            files.remove(_url(folder, old))
        return number


def _is_silent(folder: str, number: int, before: dict[str, Any], lease_s: float) -> bool:
    """Watch another host's lock file: True if it stays as it is for the whole lease, or goes away."""
    if before["host"] == socket.gethostname():
        return False
    _log.warning(
        "process %s on %s holds this run; watching %g s for a sign of life",
        before["pid"],
        before["host"],
        lease_s,
    )
    end = time.monotonic() + lease_s
    while time.monotonic() < end:
        time.sleep(min(1.0, lease_s / 20))
        now = _owner(folder, number)
        if now is None:
            return True
        if now != before:
            return False
    return True


def _refusal(folder: str, number: int, owner: dict[str, Any]) -> UserError:
    return explain(
        what=f"process {owner['pid']} on {owner['host']} is working in this run directory",
        where=_url(folder, number),
        fix="wait for it or stop it; if there is no such process any more, remove this file",
    )


def _numbers(folder: str) -> list[int]:
    found = (name.removesuffix(".json") for name in files.names(folder) if name.endswith(".json"))
    return sorted(int(name) for name in found if name.isdigit())


def _owner(folder: str, number: int) -> dict[str, Any] | None:
    try:
        return json.loads(files.read(_url(folder, number)))
    except FileNotFoundError:
        return None


def _url(folder: str, number: int) -> str:
    return files.join(folder, f"{number:08d}.json")


def _bytes(owner: dict[str, Any]) -> bytes:
    return json.dumps(owner).encode()


def _is_dead(owner: dict[str, Any]) -> bool:
    """Only of a process on this host can that be known at once."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _born(owner["pid"]) != owner["born"]


def _born(pid: int) -> str | None:
    """Start time of a process, which tells it from a later one with the same number; None where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rsplit(")", 1)[-1].split()[19]
