"""Tree files: three levels, a flat list, or another tree with changes.

    categories: {c: {groups: {g: {types: {t: ...}}}}} \\
    types: [{name: ..., ...}, ...]                     > --read_tree--> Tree
    extends: default, with change: and remove:        /
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from infinity_mm.config import build, read_yaml, to_plain
from infinity_mm.errors import explain
from infinity_mm.taxonomy.tree import InstructionType, Tree

_FOLDER = Path(__file__).parent / "trees"
SHIPPED = ("windtunnel", "default", "grounding", "any_picture")


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
class TreePart:
    """What a file named under `parts` may say."""

    categories: dict[str, Category]
    """See `TreeFile`."""


@dataclass(frozen=True, kw_only=True)
class TreeFile:
    """What a file may say."""

    name: str
    """What the tree is called."""
    version: str = "1"
    """Raise it with every edit that changes what is asked."""
    vocabulary: str | None = None
    """`general`, `windtunnel` or the path of a file that all tags must be in; null: that of the tree it extends."""
    extends: str | None = None
    """A shipped tree or the path of a file, relative to this one, whose types are taken over first."""
    remove: tuple[str, ...] = ()
    """Paths of types, groups or categories that are left out."""
    change: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path of a type -> those of its keys that change."""
    parts: tuple[str, ...] = ()
    """Files, relative to this one, with one `categories` section each."""
    categories: dict[str, Category] = field(default_factory=dict)
    """Types on three levels."""
    types: tuple[dict[str, Any], ...] = ()
    """Types as a list: the keys of a type, and as `name` a name or a whole path. One without tags suits any image."""


def read_tree(name: str) -> Tree:
    """Read a shipped tree by name, or the file at a path."""
    return _shipped(name) if name in SHIPPED else _read(_file(name, beside=Path()), ())


@cache
def _shipped(name: str) -> Tree:
    """Once in a process: a pass reads it for its fingerprint and again when it opens."""
    return _read(_file(name, beside=Path()), ())


def _file(name: str, *, beside: Path) -> Path:
    file = _FOLDER / f"{name}.yaml" if name in SHIPPED else beside / name
    if not file.is_file():
        raise explain(
            what=f"there is no instruction tree `{name}`",
            where="plan.tree (configuration)",
            fix=f"use one of {', '.join(SHIPPED)}, or the path of a YAML file",
        )
    return file


def _read(file: Path, readers: tuple[Path, ...]) -> Tree:
    if file in readers:
        raise explain(
            what=f"{file} extends itself", where=str(readers[-1]), fix="let `extends` name another tree"
        )
    form = build(TreeFile, read_yaml(file), where=str(file))
    categories = _categories(form, file)
    base = None
    if form.extends is not None:
        base = _read(_file(form.extends, beside=file.parent), (*readers, file))
    leaves = dict(base.leaves) if base else {}
    sections = dict(base.sections) if base else {}
    _remove(leaves, sections, form.remove, where=str(file))
    _change(leaves, form.change, where=str(file))
    sections |= _sections(categories)
    for path, leaf in (*_nested(categories), *_listed(form.types, where=str(file))):
        if path in leaves:
            raise explain(
                what=f"there is a type `{path}` already",
                where=str(file),
                fix="give it another path, or put the keys that differ under `change`",
            )
        leaves[path] = leaf
    return Tree(
        name=form.name,
        version=form.version,
        vocabulary=form.vocabulary or (base.vocabulary if base else None),
        leaves=leaves,
        sections=sections,
        where=str(file),
    )


def _categories(form: TreeFile, file: Path) -> dict[str, Category]:
    """Those of the file itself, then those of its parts."""
    categories = dict(form.categories)
    for name in form.parts:
        part = file.parent / name
        if not part.is_file():
            raise explain(
                what=f"there is no file {part}", where=f"{file}, parts", fix="name files relative to this one"
            )
        for category, content in build(TreePart, read_yaml(part), where=str(part)).categories.items():
            if category in categories:
                raise explain(
                    what=f"the category `{category}` is there already",
                    where=str(part),
                    fix="keep each category in one file",
                )
            categories[category] = content
    return categories


def _remove(
    leaves: dict[str, InstructionType], sections: dict[str, str], paths: Sequence[str], *, where: str
) -> None:
    for path in paths:
        gone = [one for one in leaves if one == path or one.startswith(f"{path}/")]
        if not gone:
            raise _unknown(path, "remove", [*leaves, *sections], where)
        for one in gone:
            del leaves[one]
    for section in list(sections):
        if not any(path.startswith(f"{section}/") for path in leaves):
            del sections[section]


def _change(
    leaves: dict[str, InstructionType], changes: Mapping[str, Mapping[str, Any]], *, where: str
) -> None:
    for path, keys in changes.items():
        if path not in leaves:
            raise _unknown(path, "change", list(leaves), where)
        leaves[path] = build(
            InstructionType, {**to_plain(leaves[path]), **keys}, where=f"{where}, change.{path}"
        )


def _sections(categories: Mapping[str, Category]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, category in categories.items():
        found[name] = category.definition
        found |= {f"{name}/{inner}": group.definition for inner, group in category.groups.items()}
    return found


def _nested(categories: Mapping[str, Category]) -> Iterator[tuple[str, InstructionType]]:
    for category_name, category in categories.items():
        for group_name, group in category.groups.items():
            for type_name, leaf in group.types.items():
                yield f"{category_name}/{group_name}/{type_name}", leaf


def _listed(types: Sequence[Mapping[str, Any]], *, where: str) -> Iterator[tuple[str, InstructionType]]:
    for place, entry in enumerate(types):
        keys = {"any_image": not entry.get("tags"), **entry}
        name = keys.pop("name", None)
        if not isinstance(name, str):
            raise explain(what="a type has no name", where=f"{where}, types[{place}]", fix="give it a `name`")
        yield name, build(InstructionType, keys, where=f"{where}, types[{place}] ({name})")


def _unknown(path: str, key: str, known: Sequence[str], where: str) -> ValueError:
    near = difflib.get_close_matches(path, known, n=1)
    return explain(
        what=f"`{key}` names `{path}`, which is not there",
        where=where,
        fix=f"did you mean `{near[0]}`?" if near else "infinity-mm tree shows all paths",
    )
