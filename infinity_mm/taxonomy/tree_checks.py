"""What makes a tree of instruction types a good one; each fault is an error that names the type.

A type must be told from every other by its definition, its examples and its names: two that say the same would share
one kind of question between two quotas, and a catch-all ("other") is a quota for nothing in particular.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from infinity_mm.dedup.text import meaning
from infinity_mm.errors import explain
from infinity_mm.taxonomy.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from infinity_mm.taxonomy.tree import InstructionType

_CATCH_ALL = frozenset(("other", "others", "misc", "miscellaneous", "various", "etc", "rest", "unknown"))
_YES_OR_NO = re.compile(
    r"(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|may|might)\b(?!.* or )",
    re.IGNORECASE,
)
_SAME_DEFINITION = 0.8
"""Shared words over all words from which on two definitions say the same."""

Fault = tuple[str, str]
"""What is wrong, and how to fix it."""


def check_leaves(leaves: Mapping[str, InstructionType], *, vocabulary: str | None, where: str) -> None:
    """Raise `UserError` for the first fault."""
    for find in (_names, _content, _labels, _definitions, _examples):
        for what, fix in find(leaves):
            raise explain(what=what, where=where, fix=fix)
    for what, fix in _tags(leaves, vocabulary):
        raise explain(what=what, where=where, fix=fix)


def normal_name(label: str) -> str:
    """A name without case, underscores and surplus blanks."""
    return " ".join(label.replace("_", " ").casefold().split())


def _names(leaves: Mapping[str, InstructionType]) -> Iterator[Fault]:
    if not leaves:
        yield "there are no instruction types", "add at least one"
    for path in leaves:
        for name in path.split("/"):
            if not name or name != name.strip():
                yield f"`{path}` is no path", "use lower-case words joined by _, levels joined by /"
            words = normal_name(name).split()
            if words and (name in _CATCH_ALL or words[0] in _CATCH_ALL):
                yield f"`{path}` has a catch-all in it", "name what is asked, or leave the type out"


def _content(leaves: Mapping[str, InstructionType]) -> Iterator[Fault]:
    for path, leaf in leaves.items():
        for key in ("definition", "shows"):
            if not getattr(leaf, key).strip():
                yield f"`{path}` has an empty {key}", "say it in one sentence"
        if not leaf.styles:
            yield (
                f"`{path}` allows no answer style",
                "give at least one of short, brief, detailed, full, choice, box, point",
            )
        if "choice" in leaf.styles and all(_YES_OR_NO.match(example) for example in leaf.examples):
            yield (
                f"`{path}` has the style choice, and both examples are answered by yes or no",
                "leave the style out, yes and no are no options; or write examples that ask what, which or how",
            )
        if len(set(leaf.examples)) < 2 or not all(example.strip() for example in leaf.examples):
            yield f"`{path}` needs two different examples", "write two questions of the type"
        if not leaf.share >= 0:
            yield f"`{path}` has the share {leaf.share}", "use 0 or more"


def _labels(leaves: Mapping[str, InstructionType]) -> Iterator[Fault]:
    """An alias must lead to one type; names may repeat in different groups."""
    owner = {normal_name(path.rpartition("/")[2]): path for path in leaves}
    for path, leaf in leaves.items():
        for alias in leaf.aliases:
            other = owner.setdefault(normal_name(alias), path)
            if other != path:
                yield f"`{path}` and `{other}` share the name `{alias}`", "keep the alias in one of them"


def _definitions(leaves: Mapping[str, InstructionType]) -> Iterator[Fault]:
    words = {path: frozenset(meaning(leaf.definition)) for path, leaf in leaves.items()}
    for (path, mine), (other, others) in combinations(words.items(), 2):
        if mine and len(mine & others) >= _SAME_DEFINITION * len(mine | others):
            yield f"`{path}` and `{other}` are defined alike", "merge them, or say what tells them apart"


def _examples(leaves: Mapping[str, InstructionType]) -> Iterator[Fault]:
    seen: dict[tuple[str, ...], str] = {}
    for path, leaf in leaves.items():
        for example in leaf.examples:
            other = seen.setdefault(meaning(example) or (example,), path)
            if other != path:
                yield f"`{path}` and `{other}` share the example `{example}`", "keep it in one"


def _tags(leaves: Mapping[str, InstructionType], vocabulary: str | None) -> Iterator[Fault]:
    if vocabulary is None:
        return
    known = frozenset(load_vocabulary(vocabulary))
    for path, leaf in leaves.items():
        for tag in leaf.tags:
            if tag not in known:
                yield (
                    f"`{path}` has the tag `{tag}`, which is not in the vocabulary `{vocabulary}`",
                    "use a tag of the vocabulary, or name your own file as `vocabulary`",
                )
