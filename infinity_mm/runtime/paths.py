"""Where files are: paths and URLs that mean the same thing on the driver, on every worker and in the next run.

runs/a --absolute--> /home/me/runs/a        under a submitted Ray job: refused, with the fix
s3://bucket/runs/a --> itself
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from infinity_mm.errors import explain


def absolute(path: str, *, what: str) -> str:
    """Return an absolute path, or the URL itself. `what` names the setting in errors (`run_dir`).

    Under a submitted Ray job a relative path is refused: the working directory is a temporary copy there, and what
    is written to it is lost.
    """
    if "://" in path:
        return path.rstrip("/")
    expanded = Path(path).expanduser()
    if not expanded.is_absolute() and in_submitted_job():
        raise explain(
            what=f"{what} is the relative path `{path}`, and this is a submitted Ray job",
            where=f"{what} (the job runs in a temporary copy of the working directory, {Path.cwd()})",
            fix=f"give an absolute path on shared storage or a URL, for example {what}=/shared/{path}",
        )
    return os.path.abspath(expanded)


def in_submitted_job() -> bool:
    """Whether `ray job submit` started this process.

    Ray's job manager hands its driver the job's configuration in this variable, with the submission id in it
    (checked with Ray 2.60); the folder name is a second sign, for a process started by such a driver.
    """
    config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    if config and "job_submission_id" in (json.loads(config).get("metadata") or {}):
        return True
    return "working_dir_files" in Path.cwd().parts
