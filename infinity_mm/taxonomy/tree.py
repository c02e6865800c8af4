"""The tree of instruction types: what each one asks, what an image must show for it, and how it may be answered.

tree*.yaml --load, validate--> Tree --leaves--> InstructionType (path `category/group/type`)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from infinity_mm.config import build, read_yaml
from infinity_mm.errors import explain
from infinity_mm.record import digest

Style = Literal["short", "brief", "detailed"]
"""How an answer is worded: a word or phrase, a short reason first, a full explanation first."""

_SHIPPED = {
    "windtunnel": "tree.yaml",
    "default": "tree_default.yaml",
    "any_picture": "tree_any_picture.yaml",
}


@dataclass(frozen=True, kw_only=True)
class InstructionType:
    """A leaf: one kind of question."""

    definition: str
    """What is asked, in one sentence."""
    shows: str
    """What the image must show, or the question makes no sense."""
    styles: tuple[Style, ...]
    """Answer styles that suit it."""
    examples: tuple[str, str]
    """Two questions of the type, shown to the model that asks."""
    tags: tuple[str, ...] = ()
    """Image tags that typically go with it; they stand in for seed data where there is none."""
    any_image: bool = False
    """Whether it suits every image, whatever its tags, and even one without any."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Second level."""

    definition: str
    types: dict[str, InstructionType]


@dataclass(frozen=True, kw_only=True)
class Category:
    """First level."""

    definition: str
    groups: dict[str, Group]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """All instruction types of a run."""

    name: str
    categories: dict[str, Category]
    where: str = field(default="tree", compare=False)
    """The file it was read from, for messages."""

    def __post_init__(self) -> None:
        for name in self._names():
            if not name or "/" in name or name != name.strip():
                raise self._wrong(f"`{name}` cannot be part of a path", "use lower-case words joined by _")
        seen: dict[str, str] = {}
        for path, leaf in self.leaves.items():
            for key in ("definition", "shows"):
                if not getattr(leaf, key).strip():
                    raise self._wrong(f"`{path}` has an empty {key}", "say it in one sentence")
            if not leaf.styles:
                raise self._wrong(
                    f"`{path}` allows no answer style", "give at least one of short, brief, detailed"
                )
            if len(set(leaf.examples)) < 2 or not all(example.strip() for example in leaf.examples):
                raise self._wrong(f"`{path}` needs two different examples", "write two questions of the type")
            for example in leaf.examples:
                other = seen.setdefault(example.strip().lower(), path)
                if other != path:
                    raise self._wrong(
                        f"`{path}` and `{other}` share the example `{example}`", "keep it in one"
                    )
        if not self.leaves:
            raise self._wrong("there are no instruction types", "add at least one")

    @cached_property
    def leaves(self) -> dict[str, InstructionType]:
        """`category/group/type` -> leaf, in file order."""
        return {
            f"{category_name}/{group_name}/{type_name}": leaf
            for category_name, category in self.categories.items()
            for group_name, group in category.groups.items()
            for type_name, leaf in group.types.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole content."""
        return digest("tree", repr((self.name, self.categories)))

    @classmethod
    def load(cls, name: str) -> Tree:
        """Read a shipped tree (`windtunnel`, `default`, `any_picture`) or the YAML file at a path."""
        file = Path(__file__).parent / _SHIPPED[name] if name in _SHIPPED else Path(name)
        if not file.is_file():
            raise explain(
                what=f"there is no instruction tree `{name}`",
                where="plan.tree (configuration)",
                fix=f"use one of {', '.join(_SHIPPED)}, or the path of a YAML file",
            )
        return build(cls, {**read_yaml(file), "where": str(file)}, where=str(file))

    def _names(self) -> list[str]:
        groups = [group for category in self.categories.values() for group in category.groups.items()]
        return [
            *self.categories,
            *(name for name, _ in groups),
            *(t for _, group in groups for t in group.types),
        ]

    def _wrong(self, what: str, fix: str) -> ValueError:
        return explain(what=what, where=self.where, fix=fix)
