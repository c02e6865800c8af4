"""Merge: the kept pairs of one image become conversations of several turns.

    q0: short, brief, detailed        c0: q0 short    q1 brief     q2 detailed
    q1: short, brief, detailed  --->  c1: q0 brief    q1 detailed  q2 short
    q2: short, brief, detailed        c2: q0 detailed q1 short     q2 brief

No conversation holds the same question twice: with the answer to a question in view, the next answer to it is
copied, not seen. The conversation that came with the image stands before c0's own turns, unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from infinity_mm.data.regions import parts_of
from infinity_mm.dedup.text import normalise
from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import Call, ImageSlot, Merged, Outcome, Sample, Turn
from infinity_mm.synth.answer import write_answer
from infinity_mm.synth.choice import stem
from infinity_mm.synth.exchange import drop, keep
from infinity_mm.synth.ids import conversation_id, is_source
from infinity_mm.synth.stage import Context


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """How conversations are cut."""

    max_turns: int = 8
    """Most questions in one conversation, besides those that came with the image."""

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise explain(
                what=f"max_turns={self.max_turns} leaves no conversation",
                where="MergeConfig (YAML section `merge`)",
                fix="set merge.max_turns to at least 1, usually 4 to 10",
            )


@final
class Merge:
    """Writes `turns`; every kept pair is merged into exactly one conversation. Asks no model."""

    name = "merge"
    reads = frozenset({"question", "style", "answer"})
    writes = frozenset({"turns"})
    roles = frozenset[str]()
    prompts = frozenset[str]()
    """Those of the styles, which the stage `styles` declares."""
    needs_probabilities = frozenset[str]()

    def __init__(self, config: MergeConfig) -> None:
        """See the module."""
        self._config = config

    async def run(self, samples: Sequence[Sample], context: Context) -> list[Outcome]:
        """The conversations, and for every sample the one it went into."""
        outcomes: list[Outcome] = []
        source = next((sample for sample in samples if is_source(sample.id)), None)
        known = (
            {normalise(turn.text) for turn in source.turns if turn.role == "user"} if source else set[str]()
        )
        kept: list[Sample] = []
        for sample in samples:
            if sample is source:
                continue
            if sample.decision not in (None, "keep"):  # there is no stage that would have rewritten it
                outcomes.append(drop(sample, self.name, f"decided_{sample.decision}"))
            elif normalise(stem(sample)) in known:
                outcomes.append(drop(sample, self.name, "asked_in_source"))
            else:
                kept.append(sample)
        table, doubles = by_question(kept)
        outcomes += [drop(sample, self.name, "duplicate_pair") for sample in doubles]
        cut = conversations(table, self._config.max_turns) or ([[]] if source else [])
        for number, pairs in enumerate(cut):
            first = source if number == 0 else None
            merged = conversation(pairs, number, context.prompts, source=first, edition=context.edition)
            outcomes.append(keep(merged))
            outcomes += [
                Merged(id=one.id, stage=self.name, into=merged.id)
                for one in ([first] if first else []) + pairs
            ]
        return outcomes


def by_question(pairs: Sequence[Sample]) -> tuple[list[dict[str, Sample]], list[Sample]]:
    """Per question, in order, its pairs by style; and the pairs for which there was one already."""
    table: dict[str, dict[str, Sample]] = {}
    doubles: list[Sample] = []
    for pair in pairs:
        row = table.setdefault(normalise(stem(pair)), {})
        if row.setdefault(pair.style or "", pair) is not pair:
            doubles.append(pair)
    return list(table.values()), doubles


def conversations(table: Sequence[Mapping[str, Sample]], max_turns: int) -> list[list[Sample]]:
    """Every pair once: conversation k takes question i in style (i + k) mod n, where that was kept."""
    styles = list(dict.fromkeys(style for row in table for style in row))
    found: list[list[Sample]] = []
    for k in range(len(styles)):
        pairs = [row[style] for i, row in enumerate(table) if (style := styles[(i + k) % len(styles)]) in row]
        found += [pairs[start : start + max_turns] for start in range(0, len(pairs), max_turns)]
    return found


def conversation(
    pairs: Sequence[Sample],
    number: int,
    prompts: PromptSet,
    *,
    source: Sample | None = None,
    edition: str = "",
) -> Sample:
    """One multi-turn sample, after the conversation of `source`, which came with the image.

    A user turn is the very prompt that was answered, so a student trains on what it meets.
    """
    turns: list[Turn] = list(source.turns) if source else []
    for pair in pairs:
        prompt = write_answer(pair)
        slots = () if turns else tuple(ImageSlot(index) for index in range(len(pair.images)))
        said = parts_of(prompts.render(prompt.name, **prompt.fields))
        turns.append(Turn("user", (*slots, *said)))
        turns.append(Turn("assistant", parts_of(pair.answer or "")))
    parts = [source, *pairs] if source else list(pairs)
    calls: dict[Call, None] = dict.fromkeys(call for pair in pairs for call in pair.calls)
    return Sample(
        id=conversation_id(parts[0].id, number, edition),
        images=parts[0].images,
        parents=tuple(part.id for part in parts),
        turns=tuple(turns),
        tags=parts[0].tags,
        calls=tuple(calls),
    )
