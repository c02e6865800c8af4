"""Prompt sets: one folder per set, one text file per prompt, `$name` marks a field, `set.yaml` says the language.

    folder --load--> PromptSet --render(prompt, fields)--> text of a user turn

Three sets ship: `nano` (short, for the wind tunnel's own models), `default` (English, for real VLMs) and `chinese`.
A path to a folder is a set too. Everything that is the same in all calls about one image (system prompt, then the
image) comes first, so that an engine's prefix cache pays for the image once; prompts therefore come after it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from infinity_mm.config import build, read_yaml
from infinity_mm.errors import explain
from infinity_mm.record import canonical_json, digest

_FIELD = re.compile(r"\$([a-z0-9_]+)")
_SCRIPTS = {"en": "LATIN", "zh": "CJK"}
"""As Unicode names them; see `quality.phrases.main_script`."""


@dataclass(frozen=True, kw_only=True)
class SetFile:
    """What `set.yaml` of a set may say."""

    language: Literal["en", "zh"] | None = None
    """Language the prompts ask for questions and answers in; null: any, and replies are not checked for it."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The texts of one prompt set."""

    name: str
    """Name of the set, or the path it was read from."""
    texts: dict[str, str] = field(repr=False)
    """Prompt name -> template."""
    language: Literal["en", "zh"] | None = None
    """See `SetFile`."""

    @classmethod
    def load(cls, name: str) -> PromptSet:
        """Read a shipped set by name, or any folder of `.txt` files by path."""
        shipped = resources.files(__name__)
        folder = Path(name) if "/" in name else Path(str(shipped.joinpath(name)))
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        if not files:
            known = sorted(p.name for p in Path(str(shipped)).iterdir() if (p / "answer_short.txt").is_file())
            raise explain(
                what=f"there is no prompt set `{name}`",
                where="prompts (configuration)",
                fix=f"use one of {', '.join(known)}, or the path of a folder with .txt files",
            )
        about = folder / "set.yaml"
        told = build(SetFile, read_yaml(about) if about.is_file() else {}, where=str(about))
        texts = {file.stem: file.read_text(encoding="utf-8").strip() for file in files}
        return cls(name=name, texts=texts, language=told.language)

    def render(self, prompt: str, **fields: str) -> str:
        """Fill in one prompt; a missing or an unused field is an error, and values are never expanded again."""
        template = self.text(prompt)
        wanted = set(_FIELD.findall(template))
        if wanted != set(fields):
            raise explain(
                what=f"the prompt has the fields {sorted(wanted)}, the stage gives {sorted(fields)}",
                where=f"prompt set {self.name}, {prompt}.txt",
                fix="use exactly the fields that the stage gives",
            )
        return _FIELD.sub(lambda match: fields[match.group(1)], template)

    def text(self, prompt: str) -> str:
        """The template itself; an unknown name is an error."""
        if prompt not in self.texts:
            raise explain(
                what=f"prompt set `{self.name}` has no prompt `{prompt}`",
                where=f"{prompt}.txt",
                fix=f"add the file; the set has {', '.join(self.texts)}",
            )
        return self.texts[prompt]

    def hash(self, prompt: str) -> str:
        """Short hash of one template, part of every sample's provenance."""
        return hashlib.sha256(self.text(prompt).encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what is asked and what counts as a reply."""
        return digest("prompts", canonical_json([self.language, self.texts]))

    @property
    def system(self) -> str:
        """The one system prompt of the set; empty means none."""
        return self.texts.get("system", "")

    @property
    def script(self) -> str | None:
        """The script that replies are to be written in; None for any."""
        return None if self.language is None else _SCRIPTS[self.language]
