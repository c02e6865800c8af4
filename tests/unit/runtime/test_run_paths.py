from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinity_mm.errors import UserError
from infinity_mm.runtime.paths import absolute, in_submitted_job

JOB = json.dumps(
    {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1", "job_name": "raysubmit_1"}}
)


def test_a_relative_path_becomes_absolute_on_a_laptop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("runs/a", what="run_dir") == str(tmp_path / "runs/a")
    assert absolute("~/runs", what="run_dir") == str(Path.home() / "runs")


def test_a_url_stays_itself() -> None:
    assert absolute("s3://bucket/runs/a/", what="run_dir") == "s3://bucket/runs/a"


def test_a_relative_path_is_refused_under_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", JOB)
    with pytest.raises(
        UserError, match=r"source.path is the relative path `images`(.|\n)*fix: .*absolute path"
    ):
        absolute("images", what="source.path")
    assert absolute("/data/images", what="source.path") == "/data/images"


def test_a_copied_working_directory_is_recognised_without_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    assert not in_submitted_job()
    monkeypatch.chdir(copy)
    assert in_submitted_job()


def test_a_ray_job_that_was_not_submitted_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": None}))
    assert not in_submitted_job()
