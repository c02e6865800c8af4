"""`infinity-mm label-seeds`: known questions about known images become seeds of the mapping.

rows, or the conversations of a run --own label?--> its type, aliases included
                                     \\--> category? --> type in it?  (an engine, choices, journaled) --> seeds.jsonl
                                                    \\--> set aside with the reason --> seeds.rejected.jsonl
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from infinity_mm.dedup.text import normalise
from infinity_mm.engines.base import ENDS_RUN, Engine, EngineSpec, Failure, Request
from infinity_mm.engines.journaled import Journaled
from infinity_mm.errors import explain
from infinity_mm.prompts import PromptSet
from infinity_mm.record import ImageRef, ImageSlot, Sample, Text, Turn, canonical_json
from infinity_mm.runtime.images import RunImages
from infinity_mm.runtime.run import Run
from infinity_mm.storage.journal import Journal
from infinity_mm.taxonomy.json_lines import read_rows
from infinity_mm.taxonomy.tree import Tree
from infinity_mm.taxonomy.vlm_tagger import PROMPTS

NONE = "none"
"""What the model says of a question that is of no kind."""
_BATCH = 512
_MAX_FAILED_SHARE = 0.05
_FEW_FAILURES = 4
_FORM = '{"question": "...", "tags": ["..."]}, and "type": "..." where it is known'


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A question about an image with tags."""

    question: str
    tags: tuple[str, ...]
    label: str | None = None
    """What whoever wrote the row says the type is."""
    images: tuple[ImageRef, ...] = ()
    """Shown to the model, if there are any."""
    path: str = ""
    """How far it is labelled: nothing, the first part of a type's path, or all of it."""
    keys: tuple[str, ...] = ()
    """Journal keys of the calls that labelled it."""
    rejected: str = ""
    """Why it is no seed."""


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """Asks a model what a question is about: first for the category, then for a type of it."""

    tree: Tree
    engine: Engine
    prompts: PromptSet = field(default_factory=lambda: PromptSet.load(PROMPTS))

    async def label(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Each with the path of a type or the reason why there is none, in order."""
        checked = [self._checked(candidate) for candidate in candidates]
        return await self._step(await self._step(checked))

    def _checked(self, candidate: Candidate) -> Candidate:
        """What needs no model."""
        if not candidate.question.strip():
            return replace(candidate, rejected="no_question")
        if not candidate.tags:
            return replace(candidate, rejected="no_tags")
        if candidate.label is None:
            return candidate
        found = candidate.label if candidate.label in self.tree.leaves else self.tree.find(candidate.label)
        return replace(candidate, path=found) if found else replace(candidate, rejected="unknown_label")

    async def _step(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """One level further down for those that are not there yet."""
        done = list(candidates)
        asked = [
            (place, candidate)
            for place, candidate in enumerate(candidates)
            if not candidate.rejected and candidate.path not in self.tree.leaves
        ]
        requests = [self._request(candidate) for _, candidate in asked]
        answers = await self.engine.generate(requests) if requests else []
        for (place, candidate), request, answer in zip(asked, requests, answers, strict=True):
            keys = (*candidate.keys, request.key(self.engine.fingerprint))
            if isinstance(answer, Failure):
                done[place] = replace(candidate, rejected=answer.reason, keys=keys)
            elif answer.simulated:
                done[place] = replace(candidate, rejected="simulated", keys=keys)
            elif answer.text in request.choices and answer.text != NONE:
                done[place] = replace(candidate, path=_join(candidate.path, answer.text), keys=keys)
            else:
                reason = "no_type_fits" if answer.text == NONE else "not_a_choice"
                done[place] = replace(candidate, rejected=reason, keys=keys)
        _check_outages(answers)
        return done

    def _request(self, candidate: Candidate) -> Request:
        kinds = below(self.tree, candidate.path)
        text = self.prompts.render(
            "label",
            question=candidate.question,
            kinds="\n".join(f"- {name}: {definition}" for name, definition in kinds.items()),
            none=NONE,
        )
        slots = tuple(ImageSlot(index) for index in range(len(candidate.images)))
        return Request(
            turns=(Turn("user", (*slots, Text(text))),),
            images=candidate.images,
            max_new_tokens=48,
            choices=(*kinds, NONE),
        )


def below(tree: Tree, path: str) -> dict[str, str]:
    """What can be chosen: at the top categories, and types that are in none; in a category all its types."""
    if path:
        start = f"{path}/"
        return {
            p.removeprefix(start): leaf.definition for p, leaf in tree.leaves.items() if p.startswith(start)
        }
    return {
        (name := p.partition("/")[0]): leaf.definition if name == p else tree.sections.get(name, name)
        for p, leaf in tree.leaves.items()
    }


async def label_seeds(
    source: str, out: Path, *, tree: Tree, spec: EngineSpec, show_images: bool = False
) -> dict[str, Any]:
    """Write the seeds and what was set aside; the same call again asks only what the journal has no answer to."""
    journal = Journal(str(out.with_suffix(".journal")), "label-seeds")
    rejected_file = out.with_suffix(".rejected.jsonl")
    seeds, rejected = (
        out.with_name(f"{out.name}.partial"),
        rejected_file.with_name(f"{rejected_file.name}.partial"),
    )
    reasons: Counter[str] = Counter()
    types: Counter[str] = Counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = iter(candidates(source, show_images=show_images))
    images = RunImages("") if _is_file(source) else Run(source).images
    async with spec.open(images) as opened:
        labeller = Labeller(tree=tree, engine=Journaled(opened, journal))
        with open(seeds, "w", encoding="utf-8") as good, open(rejected, "w", encoding="utf-8") as bad:
            while batch := list(islice(rows, _BATCH)):
                for one in await labeller.label(batch):
                    (bad if one.rejected else good).write(_line(one, opened.fingerprint))
                    reasons.update([one.rejected] if one.rejected else [])
                    types.update([one.path] if not one.rejected else [])
    os.replace(rejected, rejected_file)
    os.replace(seeds, out)
    return {
        "out": str(out),
        "seeds": types.total(),
        "types": len(types),
        "types_without_seeds": len(tree.leaves) - len(types),
        "rejected": dict(reasons.most_common()),
    }


def candidates(source: str, *, show_images: bool) -> Iterator[Candidate]:
    """The rows of a JSONL file, or the user turns of the tagged images of a run."""
    if not _is_file(source):
        for sample in Run(source).samples("tag"):
            yield from _from_conversation(sample, show_images)
        return
    for _, row in read_rows(Path(source), form=_FORM):
        tags, label = row.get("tags"), row.get("type")
        yield Candidate(
            question=row["question"] if isinstance(row.get("question"), str) else "",
            tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
            label=label if isinstance(label, str) else None,
        )


def _from_conversation(sample: Sample, show_images: bool) -> Iterator[Candidate]:
    seen: set[str] = set()
    for turn in sample.turns:
        if turn.role == "user" and normalise(turn.text) not in seen:
            seen.add(normalise(turn.text))
            yield Candidate(
                question=turn.text.strip(),
                tags=tuple(tag.name for tag in sample.tags or ()),
                images=sample.images if show_images else (),
            )


def _line(one: Candidate, model: str) -> str:
    row: Mapping[str, Any] = {"question": one.question, "tags": list(one.tags), "keys": list(one.keys)}
    if one.rejected:
        row = {**row, "reason": one.rejected, "label": one.label, "category": one.path}
    else:
        row = {**row, "type": one.path, "labelled_by": model if one.keys else "the row"}
    return canonical_json(row) + "\n"


def _is_file(source: str) -> bool:
    return source.endswith(".jsonl")


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _check_outages(answers: Iterable[Any]) -> None:
    found = list(answers)
    failed = [answer.reason for answer in found if isinstance(answer, Failure) and answer.is_outage]
    if ENDS_RUN & set(failed) or len(failed) > max(_FEW_FAILURES, _MAX_FAILED_SHARE * len(found)):
        raise explain(
            what=f"{len(failed)} of {len(found)} calls failed, retries included, the first with {failed[0]}",
            where="the engine (--engine)",
            fix="look after the server and run the same command again; replies that came are in the journal",
        )
