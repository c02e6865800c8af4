"""Every block of docs/extending.md is executed, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infinity_mm.synth.stages import STAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.mark.integration
def test_the_examples_of_the_page_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        STAGES, "open_questions", STAGES["ask"]
    )  # the page sets it; afterwards it is gone again
    monkeypatch.delitem(STAGES, "open_questions")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    namespace: dict[str, Any] = {"__name__": "extending"}
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") >= 6
    for kind, text in blocks:
        if kind == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", text)
            assert name is not None, "a YAML block begins with its file's name"
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
        else:
            exec(compile(text, "docs/extending.md", "exec"), namespace)


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:infinity_mm|synth|tests|configs)/[\w./-]+\.(?:py|yaml))`", PAGE)
    assert len(named) >= 4
    assert [
        path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "infinity_mm"))
    ] == []
