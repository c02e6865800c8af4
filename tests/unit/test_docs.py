"""What README and docs point to is there: tests by name, pages, scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
DEFINED = {
    name for text in TESTS.values() for name in re.findall(r"^\s*(?:async )?def (test_\w+)", text, re.M)
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def missing(text: str, folder: Path) -> list[str]:
    """What a page names that does not exist; links are relative to `folder`."""
    named = set(re.findall(r"\btest_\w+(?:\.py)?", text))
    gone = sorted(named - DEFINED - set(TESTS))
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    gone += [target for target in targets if not (folder / target).exists()]
    paths = re.findall(r"(?<![\w./])((?:docs|benchmarks|configs|pipelines|train|tests)/[\w/]+\.\w+)", text)
    return gone + [path for path in paths if not (ROOT / path).exists()]


@pages
def test_every_test_page_and_script_that_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8"), page.parent) == []


def test_what_is_not_there_is_found() -> None:
    text = "`test_nothing_of_the_kind` in test_none.py, [a page](none.md), `benchmarks/none.py`, [ok](docs/report.md)"
    assert missing(text, ROOT) == [
        "test_none.py",
        "test_nothing_of_the_kind",
        "none.md",
        "benchmarks/none.py",
    ]
    assert missing("`test_readme.py`, benchmarks/report_page.py", ROOT) == []
