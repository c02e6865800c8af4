from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infinity_mm.config import load_config
from infinity_mm.errors import UserError
from infinity_mm.synth.config import SynthConfig
from infinity_mm.synth.run import run_synthesis
from infinity_mm.trial.starter import Starter, starter_text, write_starter

KINDS: dict[str, dict[str, Any]] = {
    "drawn": {},
    "server": {"images": "PHOTOS", "endpoint": "http://gpu:8000/v1", "model": "org/vlm"},
    "key": {"images": "PHOTOS", "endpoint": "https://x/v1", "model": "m", "api_key_env": "MY_KEY"},
    "no tags": {"images": "PHOTOS", "tagger": "none"},
    "images": {"images": "PHOTOS"},
    "url": {"images": "s3://bucket/photos", "model": "org/vlm"},
}


def starter(kind: str, folder: Path) -> Starter:
    photos = folder / "my photos # 1"
    photos.mkdir(exist_ok=True)
    values = {key: str(photos) if value == "PHOTOS" else value for key, value in KINDS[kind].items()}
    return Starter(path=folder / "synth.yaml", **values)


@pytest.mark.parametrize("kind", KINDS)
def test_every_starter_loads_strictly_and_says_what_was_asked_for(kind: str, tmp_path: Path) -> None:
    told = starter(kind, tmp_path)
    config = write_starter(told, force=False)
    assert config == load_config(SynthConfig, told.path)
    assert config.run_dir == str(tmp_path / "runs" / "synth")
    teacher = config.engines.teacher
    assert teacher.model == (
        told.model or ("nano-teacher" if kind == "drawn" else "Qwen/Qwen2.5-VL-7B-Instruct")
    )
    assert teacher.api_key_env == told.api_key_env
    if told.images is not None:
        assert config.read.sources[0].path == told.images


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_explained(kind: str, tmp_path: Path) -> None:
    lines = starter_text(starter(kind, tmp_path)).splitlines()
    keys = [line for line in lines if re.match(r"\s*(- )?\w+:", line)]
    assert len(keys) > 40
    assert [line for line in keys if not re.search(r" # \S.{4,}", line)] == []


def test_an_existing_file_is_overwritten_only_when_forced(tmp_path: Path) -> None:
    told = starter("drawn", tmp_path)
    told.path.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        write_starter(told, force=False)
    assert told.path.read_text() == "mine"
    write_starter(told, force=True)
    assert [file.name for file in tmp_path.glob("*.yaml")] == ["synth.yaml"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"endpoint": "http://x/v1", "model": "m"}, "add --images"),
        ({"images": "/", "endpoint": "http://x/v1"}, "add --model"),
        ({"images": "/nothing/there"}, "there is no folder"),
        ({"images": "/", "endpoint": "http://me:secret@x/v1", "model": "m"}, "--api-key-env"),
    ],
)
def test_what_makes_no_run_is_told(tmp_path: Path, values: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        write_starter(Starter(path=tmp_path / "a.yaml", **values), force=False)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "a.yaml").exists()


def test_the_starter_without_any_option_runs_as_it_is_written(tmp_path: Path) -> None:
    write_starter(starter("drawn", tmp_path), force=False)
    source = "read.sources=[{kind: windtunnel, num_images: 2, world_seed: 1}]"
    small = [source, "plan.questions_per_image=1", "plan.num_seed_scenes=40"]
    summary = run_synthesis(load_config(SynthConfig, tmp_path / "synth.yaml", small))
    assert (summary.images_read, summary.questions_planned) == (2, 2)
    assert (tmp_path / "runs" / "synth" / "summary.json").is_file()
