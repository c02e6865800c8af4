"""The tree of instruction types: what each one asks, what an image must show for it, and how it may be answered.

YAML file --read_tree--> Tree --check_leaves--> path `category/group/type` -> InstructionType
                          \\--shares--> weight of each type's quota; 0 switches it off
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from infinity_mm.errors import explain
from infinity_mm.record import digest
from infinity_mm.taxonomy.tree_checks import check_leaves, normal_name

Style = Literal["short", "brief", "detailed", "full", "choice", "box", "point"]
"""How an answer is worded: a word or phrase, a short reason first, a full explanation first, a text or list that is the
answer itself, one of several options, a box, a point."""


@dataclass(frozen=True, kw_only=True)
class InstructionType:
    """A leaf: one kind of question."""

    definition: str
    """What is asked, in one sentence."""
    shows: str = "Anything."
    """What the image must show, or the question makes no sense."""
    styles: tuple[Style, ...] = ("short", "brief", "detailed")
    """Answer styles that suit it."""
    examples: tuple[str, str]
    """Two questions of the type, shown to the model that asks."""
    tags: tuple[str, ...] = ()
    """Image tags that typically go with it; they stand in for seed data where there is none."""
    aliases: tuple[str, ...] = ()
    """Other names of the type, as labels of seed data may have them; each belongs to one type only."""
    any_image: bool = False
    """Whether it suits every image, whatever its tags, and even one without any."""
    sensitive: bool = False
    """Whether it concerns what a person may not want concluded from a picture; off until it is asked for."""
    asks_about_a_box: bool = False
    """Whether the question names what it is about by a box, which is checked and kept as one."""
    any_language: bool = False
    """Whether an answer may be in any language, as what is read off a picture is; others are checked for it."""
    share: float = 1.0
    """Weight of its quota; `plan.shares` multiplies it."""

    @property
    def needs_one_image(self) -> bool:
        """Whether it is about a place in the image, so that several images would leave open which."""
        return self.asks_about_a_box or set(self.styles) <= {"box", "point"}

    @property
    def description(self) -> str:
        """What prompts say of it: what is asked, and what the image must show where not anything will do."""
        if self.shows == InstructionType.shows:
            return self.definition
        return f"{self.definition} The image must show: {self.shows}"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """All instruction types of a run."""

    name: str
    leaves: Mapping[str, InstructionType]
    """`category/group/type` -> leaf, in file order; a flat list has paths of one part."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Path of a category or group -> what its questions have in common."""
    version: str = "1"
    """Raised by whoever edits the file; runs and their records name it."""
    vocabulary: str | None = None
    """The vocabulary that all tags must be in; None: any tag is taken."""
    where: str = field(default="tree", compare=False)
    """The file it was read from, for messages."""

    def __post_init__(self) -> None:
        check_leaves(self.leaves, vocabulary=self.vocabulary, where=self.where)

    @classmethod
    def load(cls, name: str) -> Tree:
        """Read a shipped tree (`windtunnel`, `default`, `grounding`, `any_picture`) or the YAML file at a path."""
        from infinity_mm.taxonomy.tree_file import read_tree

        return read_tree(name)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole content."""
        return digest("tree", repr((self.name, self.version, self.vocabulary, self.sections, self.leaves)))

    @property
    def styles(self) -> dict[str, tuple[Style, ...]]:
        """Path -> the answer styles that suit the type."""
        return {path: leaf.styles for path, leaf in self.leaves.items()}

    def find(self, label: str) -> str | None:
        """The path of the type that goes by this path, name or alias; None if no type or several do."""
        return self._labels.get(normal_name(label))

    def shares(self, asked: Mapping[str, float], *, include_sensitive: bool = False) -> dict[str, float]:
        """Path -> weight of its quota: the leaf's own share times the one of the longest beginning in `asked`.

        A sensitive type has 0 unless it is asked for by its whole path, or all of them are.
        """
        for beginning in asked:
            if not any(path == beginning or path.startswith(f"{beginning}/") for path in self.leaves):
                near = difflib.get_close_matches(beginning, [*self.leaves, *self.sections], n=1)
                raise explain(
                    what=f"the tree `{self.name}` has nothing at `{beginning}`",
                    where="plan.shares (configuration)",
                    fix=f"did you mean `{near[0]}`?" if near else "infinity-mm tree shows all paths",
                )
        return {
            path: leaf.share * share_of(path, asked)
            if include_sensitive or not leaf.sensitive or path in asked
            else 0.0
            for path, leaf in self.leaves.items()
        }

    @cached_property
    def _labels(self) -> dict[str, str | None]:
        labels: dict[str, str | None] = {}
        for path, leaf in self.leaves.items():
            for label in {normal_name(text) for text in (path, path.rpartition("/")[2], *leaf.aliases)}:
                labels[label] = None if label in labels else path
        return labels


def share_of(path: str, shares: Mapping[str, float]) -> float:
    """The share of the longest beginning of the path that has one."""
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        if (beginning := "/".join(parts[:length])) in shares:
            return shares[beginning]
    return 1.0
