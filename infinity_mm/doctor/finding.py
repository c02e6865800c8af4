"""What a check says, and how checks are run.

Asked --Check*--> Finding* (ok, warning, problem), each with its fix
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the machine is asked for."""

    run_dir: str | None = None
    """Folder or URL that a run will be written to; None: the current folder."""
    endpoint: str | None = None
    """A model server that a run will ask; None: there is none."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about the machine."""

    check: str
    """What was looked at, in a word or two."""
    level: Level
    """`problem`: something will not work. `warning`: something may not, or will be slow."""
    text: str
    """What was found."""
    fix: str = ""
    """A command or a sentence; empty where nothing is to be done."""


Check = Callable[[Asked], Iterable[Finding]]
"""A function that looks at one thing. To add one, write it and put it into `checks.CHECKS`."""


def ok(check: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, level="ok", text=text)


def warning(check: str, text: str, fix: str) -> Finding:
    """It may not work, or slowly."""
    return Finding(check=check, level="warning", text=text, fix=fix)


def problem(check: str, text: str, fix: str) -> Finding:
    """It will not work."""
    return Finding(check=check, level="problem", text=text, fix=fix)


def run_checks(asked: Asked, checks: Sequence[Check]) -> list[Finding]:
    """All findings in order. A check that raises is a problem of its own and does not stop the others."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check(asked)
        except Exception as error:
            name = getattr(check, "__name__", "check").replace("_", " ")
            said = f"the check itself failed: {type(error).__name__}: {error}"
            findings.append(problem(name, said, "report this as a bug; the other checks are not affected"))
    return findings
