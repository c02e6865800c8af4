"""A trial's few dials, and the whole configuration that follows from them.

Settings --settings_config--> SynthConfig, the same that pipelines/synth.py runs
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinity_mm.config import build
from infinity_mm.record import canonical_json, digest
from infinity_mm.synth.config import SynthConfig
from infinity_mm.trial.endpoint import Served

NANO_TEACHER = "nano-teacher"
NO_TAGGER = "none"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person may choose on the command line."""

    images: tuple[str, ...]
    """Files, folders and patterns, as typed."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server; None: the model is loaded in this process."""
    model: str | None = None
    """Name on the server; without one a shipped name, a folder or a Hub id, by default nano-teacher."""
    num_pictures: int = 20
    """Most pictures that are worked."""
    questions_per_image: int = 3
    tagger: str | None = None
    """An open_clip name; None: no tags, or nano-clip for nano-teacher."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    out: str | None = None
    """Folder of the trial; None: one below runs/try that follows from the other settings."""

    @property
    def is_nano(self) -> bool:
        """Whether the teacher is the shipped one, which knows drawn pictures only."""
        return self.endpoint is None and self.model in (None, NANO_TEACHER)

    @property
    def model_name(self) -> str:
        """The teacher, as it is called on the page before the server was asked."""
        return self.model or (NANO_TEACHER if self.endpoint is None else "the server's model")

    def folder(self, model: str) -> Path:
        """Where the trial goes: the same command finds it again, another one gets another folder.

        The number of pictures is no part of it: with a larger --n the trial goes on.
        """
        if self.out is not None:
            return Path(self.out).expanduser().absolute()
        images = [os.path.abspath(os.path.expanduser(image)) for image in self.images]
        same = [images, self.endpoint, model, self.questions_per_image, self.tagger]
        slug = re.sub(r"[^a-z0-9]+", "-", model.rpartition("/")[2].lower()).strip("-")[:40] or "model"
        return Path("runs", "try", f"{slug}-{digest(canonical_json(same))[:8]}").absolute()


def settings_config(settings: Settings, served: Served | None, *, folder: Path) -> SynthConfig:
    """Everything else at its default, or where a small number of pictures on one machine asks for it.

    `served` is the checked server; None for a model in this process.
    """
    return build(
        SynthConfig,
        {
            "name": "try",
            "run_dir": str(folder / "run"),
            "read": {"sources": [{"kind": "files", "name": "files", "path": str(folder / "inputs.jsonl")}]},
            "engines": {"teacher": _teacher(settings, served)},
            # A few pictures in a unit: each unit that is done shows on the page, and two are worked at once.
            "images_per_shard": 4,
            **(_nano(settings) if settings.is_nano else _general(settings)),
        },
        where="the trial's configuration",
    )


def _teacher(settings: Settings, served: Served | None) -> dict[str, Any]:
    if served is None:
        return {"kind": "transformers", "model": settings.model or NANO_TEACHER}
    teacher: dict[str, Any] = {
        "kind": "openai",
        "base_url": served.base_url,
        "model": served.model,
        "max_in_flight": 16,
        # Somebody is waiting; what a server in trouble did answer is kept for the next try.
        "max_retries": 3,
        "max_down_s": 10.0,
        "image_max_px": 1536,
    }
    if settings.api_key_env is not None:
        teacher["api_key_env"] = settings.api_key_env
    if served.extra_body:
        teacher["extra_body"] = served.extra_body
    return teacher


def _general(settings: Settings) -> dict[str, Any]:
    """For teachers that know the world: without a tagger, types that can be asked of nearly any picture."""
    plan: dict[str, Any] = {"seeds": "tree", "questions_per_image": settings.questions_per_image}
    if settings.tagger in (None, NO_TAGGER):
        tagger: dict[str, Any] = {"model": NO_TAGGER, "vocabulary": "general"}
        return {"tagger": tagger, "plan": {"tree": "any_picture", **plan}, "prompts": "default"}
    tagger = {
        "model": settings.tagger,
        "vocabulary": "general",
        "prompt": "a photo of {tag}",
        "min_score": 0.2,
    }
    return {"tagger": tagger, "plan": {"tree": "default", "min_fit": 0.3, **plan}, "prompts": "default"}


def _nano(settings: Settings) -> dict[str, Any]:
    """What configs/synth/windtunnel.yaml says: the nano models know its words, types and prompts and no others."""
    return {
        "tagger": {"model": "nano-clip", "vocabulary": "windtunnel"},
        "plan": {
            "tree": "windtunnel",
            "seeds": "windtunnel",
            "questions_per_image": settings.questions_per_image,
        },
        "prompts": "nano",
        "ask": {
            "temperature": 0.7,
            "max_new_tokens": 48,
            "min_chars": 4,
            "drop_copied_examples": False,
            "describe_type": False,
        },
        "answer": {"max_new_tokens": {"short": 24, "brief": 64, "detailed": 160}},
        "policy": {"keep_at": 8, "rewrite_at": 2, "by": "expected"},
        "rewrite": {"max_new_tokens": 160},
    }
