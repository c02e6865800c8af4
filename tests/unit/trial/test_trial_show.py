from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from infinity_mm.trial.run import Result
from infinity_mm.trial.show import print_result, wants_page

COUNTS = {
    "pictures_worked": 2,
    "planned": 6,
    "written": 5,
    "distinct": 5,
    "answerable": 4,
    "answers": 8,
    "kept": 3,
}
RESULT = Result(
    page="/out/index.html",
    run_dir="/out/run",
    model="[red]vlm",
    state="done",
    files_given=3,
    pictures_read=2,
    files_unusable={"truncated": 1},
    files_not_needed=0,
    counts={**COUNTS, "repaired": 1, "dropped": {"ask": {"refusal": 1}}, "failed": {"judge": {"timeout": 2}}},
    notes=("told before",),
    next_commands=("infinity-mm init synth.yaml",),
    wall_s=12.0,
)


def printed(result: Result, capsys: pytest.CaptureFixture[str]) -> str:
    print_result(result, Console(width=100, color_system=None))
    return capsys.readouterr().out


def test_the_summary_says_what_was_kept_why_the_rest_was_not_and_what_comes_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(RESULT, capsys)
    for part in (
        "2 pictures through [red]vlm",
        "1 dropped: Writing the question: the model declined",
        "2 failed: Judging: the server did not answer in time",
        "files left out: the file is cut short 1",
        "page: /out/index.html",
        "  infinity-mm init synth.yaml",
    ):
        assert part in text
    assert "told before" not in text


def test_a_trial_that_was_stopped_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = dataclasses.replace(RESULT, state="interrupted", notes=("Stopped by Ctrl-C.", "told before"))
    assert "Stopped by Ctrl-C." in printed(stopped, capsys)


def test_a_page_is_opened_when_asked_for_and_never_unasked_where_nobody_looks() -> None:
    assert wants_page(True, as_json=True)
    assert not wants_page(False, as_json=False)
    assert not wants_page(None, as_json=True)
