"""The command lines that follow a trial, ready to be pasted into a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from infinity_mm.trial.endpoint import Served
from infinity_mm.trial.settings import Settings

CONFIG = "synth.yaml"


def next_commands(settings: Settings, served: Served | None) -> list[str]:
    """`init` with the trial's own images and teacher, then the real run."""
    init = ["infinity-mm", "init", CONFIG]
    if not settings.is_nano:
        init += ["--images", images_folder(settings.images)]
    if served is not None:
        init += ["--endpoint", served.base_url, "--model", served.model]
    elif not settings.is_nano and settings.model is not None:
        init += ["--model", settings.model]
    if settings.api_key_env is not None:
        init += ["--api-key-env", settings.api_key_env]
    return [shlex.join(init), f"python pipelines/synth.py --config {CONFIG}"]


def images_folder(arguments: Sequence[str]) -> str:
    """The one folder that was named, or the folder that all that was named lies in."""
    paths = [os.path.abspath(os.path.expanduser(argument)) for argument in arguments]
    folders = [_existing(path) for path in paths]
    return os.path.commonpath(folders)


def _existing(path: str) -> str:
    """The path itself if it is a folder, else the nearest folder above it: a pattern names none of its own."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
