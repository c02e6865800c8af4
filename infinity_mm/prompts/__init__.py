"""Prompt sets: one folder per set, one text file per prompt, `$name` marks a field.

Two sets ship: `nano` (short, for the wind tunnel's own models) and `default` (for real VLMs). A path to a
folder is a set too. Everything that is the same in all calls about one image (system prompt, then the image)
comes first, so that an engine's prefix cache pays for the image once; prompts therefore come after it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.quality.phrases import main_script

_FIELD = re.compile(r"\$([a-z0-9_]+)")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The texts of one prompt set."""

    name: str
    """Name of the set, or the path it was read from."""
    texts: dict[str, str] = field(repr=False)
    """Prompt name -> template."""

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
        return cls(name=name, texts={file.stem: file.read_text(encoding="utf-8").strip() for file in files})

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
    def system(self) -> str:
        """The one system prompt of the set; empty means none."""
        return self.texts.get("system", "")

    @cached_property
    def script(self) -> str | None:
        """The script it is written in (LATIN, CJK, ...), in which replies are expected; None without a letter."""
        return main_script(" ".join(self.texts.values()))
