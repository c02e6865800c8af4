"""Styles: one child per answer style for every question; the calls come in the next stage.

question --expand--> question in style short, brief, detailed, full, choice   (those that suit its type)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from infinity_mm.errors import explain
from infinity_mm.record import Outcome, Sample
from infinity_mm.synth.choice import STYLE as CHOICE
from infinity_mm.synth.exchange import REPAIR, drop, keep
from infinity_mm.synth.ids import answer_id
from infinity_mm.synth.stage import Context


@dataclass(frozen=True, kw_only=True)
class StylesConfig:
    """In which styles every question is answered."""

    names: tuple[str, ...] = ("short", "brief", "detailed", "full")
    """Each has a prompt `answer_<name>`, if the tree lists it for any type, and becomes part of the sample's id. `full`
    is for what is asked for as a text or list: a description, a transcription. `choice` is multiple choice."""
    suit_the_type: bool = True
    """Leave out styles that the instruction tree does not list for the question's type."""

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise explain(
                what=f"styles.names={list(self.names)} is empty or has a name twice",
                where="StylesConfig (YAML section `styles`)",
                fix="give each style once, usually [short, brief, detailed]",
            )


@final
class Styles:
    """Writes `style`; turns a question into one child per style. Asks no model."""

    name = "styles"
    reads = frozenset({"question"})
    writes = frozenset({"style"})
    roles = frozenset[str]()
    needs_probabilities = frozenset[str]()

    def __init__(self, config: StylesConfig, suitable: Mapping[str, Sequence[str]]) -> None:
        """`suitable`: instruction type -> its styles; a type that is not in it may be answered in all."""
        self._names = styles_used(config, suitable)
        self._suitable = suitable if config.suit_the_type else {}
        for_choice = ("answer_short", "options", REPAIR) if CHOICE in self._names else ()
        self.prompts = frozenset((*(f"answer_{name}" for name in self._names), *for_choice))

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """Children in the order of the configuration."""
        return [outcome for sample in samples for outcome in self._expand(sample)]

    def _expand(self, sample: Sample) -> list[Outcome]:
        suitable = self._suitable.get(sample.instruction_type or "", self._names)
        names = [name for name in self._names if name in suitable]
        if not names:
            return [drop(sample, self.name, "no_suitable_style")]
        return [
            keep(replace(sample, id=answer_id(sample.id, name), parents=(sample.id,), style=name))
            for name in names
        ]


def styles_used(config: StylesConfig, suitable: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Those of the configured styles that suit any type at all; the others need no prompt."""
    if not config.suit_the_type or not suitable:
        return config.names
    return tuple(name for name in config.names if any(name in styles for styles in suitable.values()))
