"""One driver per run directory: a lock file that names its owner, and is taken over when the owner is dead."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infinity_mm.errors import explain
from infinity_mm.storage import files


@contextmanager
def run_lock(url: str) -> Iterator[None]:
    """Hold the lock file `url`, or raise `UserError` naming the process that does.

    Two drivers that find the same dead owner in the same instant may both go on. That costs double work and nothing
    else: of two commits of a unit the first wins.
    """
    token = secrets.token_hex(8)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), "token": token}
    data = json.dumps(mine).encode()
    while not files.create(url, data):
        owner = _owner(url)
        if owner is None:
            continue  # released between the two looks
        if owner["token"] == token:
            break  # an object store's client tried twice, and the first try had gone through
        if not _is_dead(owner):
            raise explain(
                what=f"process {owner['pid']} on {owner['host']} is working in this run directory",
                where=url,
                fix="wait for it or stop it; if there is no such process any more, remove this file",
            )
        files.remove(url)
    try:
        yield
    finally:
        owner = _owner(url)
        if owner is not None and owner["token"] == token:
            files.remove(url)


def _owner(url: str) -> dict[str, Any] | None:
    try:
        return json.loads(files.read(url))
    except FileNotFoundError:
        return None


def _is_dead(owner: dict[str, Any]) -> bool:
    """Only of a process on this host can that be known."""
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
