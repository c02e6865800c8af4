"""The list of checks, in the order in which they are shown, and the table of what they found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from infinity_mm.doctor import machine, services, software
from infinity_mm.doctor.finding import Check, Finding

CHECKS: tuple[Check, ...] = (
    software.python,
    software.packages,
    software.torch_pair,
    software.gpu,
    machine.cpu,
    machine.memory,
    machine.shared_memory,
    machine.open_files,
    machine.run_dir,
    machine.fonts,
    services.ray_token,
    services.ray_starts,
    services.hub,
    services.engine,
)
"""To add a check, add a function."""

_MARKS = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "bold red")}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """One line each, and below it the fix; what servers and libraries said is printed as it is, without markup."""
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        mark, style = _MARKS[finding.level]
        line = Text(mark, style=style) + Text(f"  {finding.check:<{width}}  {finding.text}", style="default")
        console.print(line, highlight=False, soft_wrap=True)
        if finding.fix:
            console.print(Text(f"{'':9}{'':<{width}}  fix: {finding.fix}"), highlight=False, soft_wrap=True)
    counts = Counter(finding.level for finding in findings)
    console.print(
        f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok", highlight=False
    )
