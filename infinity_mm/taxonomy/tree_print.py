"""A tree of instruction types for people: what is in it, and what of it is on.

Tree --tree_figures--> counts --print_tree--> console
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree as Branch

from infinity_mm.taxonomy.tree import InstructionType, Tree


def tree_figures(tree: Tree) -> dict[str, Any]:
    """Counts and names, as `--json` prints them."""
    leaves = tree.leaves
    sections = [{above[level] for path in leaves if len(above := _above(path)) > level} for level in (0, 1)]
    return {
        "name": tree.name,
        "version": tree.version,
        "fingerprint": tree.fingerprint,
        "file": tree.where,
        "vocabulary": tree.vocabulary,
        "num_categories": len(sections[0]),
        "num_groups": len(sections[1]),
        "num_types": len(leaves),
        "num_tags": len({tag for leaf in leaves.values() for tag in leaf.tags}),
        "num_aliases": sum(len(leaf.aliases) for leaf in leaves.values()),
        "types_by_style": dict(Counter(style for leaf in leaves.values() for style in leaf.styles)),
        "any_image": [path for path, leaf in leaves.items() if leaf.any_image],
        "sensitive": [path for path, leaf in leaves.items() if leaf.sensitive],
        "types": {path: leaf.definition for path, leaf in leaves.items()},
        "shows": {path: leaf.shows for path, leaf in leaves.items()},
    }


def print_tree(tree: Tree, console: Console) -> None:
    """All types with their definitions, then the counts."""
    figures = tree_figures(tree)
    root = Branch(f"[bold]{escape(tree.name)}[/], version {escape(tree.version)}: {escape(tree.where)}")
    branches = {"": root}
    for path, leaf in tree.leaves.items():
        above = ""
        for section in _above(path):
            if section not in branches:
                num_types = sum(one.startswith(f"{section}/") for one in tree.leaves)
                name = f"[bold]{escape(section.rpartition('/')[2])}[/] ({num_types})"
                definition = tree.sections.get(section)
                branches[section] = branches[above].add(
                    f"{name} [dim]{escape(definition)}[/]" if definition else name
                )
            above = section
        branches[above].add(_line(path, leaf))
    console.print(root, highlight=False)
    styles = ", ".join(f"{number} {style}" for style, number in figures["types_by_style"].items())
    tags = f"{figures['num_tags']} tags"
    if tree.vocabulary is not None:
        tags += f", all in the vocabulary {tree.vocabulary}"
    console.print(
        f"{len(tree.leaves)} types in {figures['num_groups']} groups of {figures['num_categories']} categories; "
        f"{tags}\nstyles: {styles}\nfor any image: {len(figures['any_image'])}; "
        f"sensitive, off until asked for: {len(figures['sensitive'])}",
        highlight=False,
        markup=False,
    )


def _above(path: str) -> list[str]:
    """Category and group of a path."""
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _line(path: str, leaf: InstructionType) -> str:
    marks = [word for word, is_so in (("any image", leaf.any_image), ("sensitive", leaf.sensitive)) if is_so]
    marked = f" [yellow]({', '.join(marks)})[/]" if marks else ""
    return f"{escape(path.rpartition('/')[2])}{marked} [dim]{escape(leaf.description)}[/]"
