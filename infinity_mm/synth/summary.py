"""What a synthesis run did, in numbers: derived from the committed passes alone, so it can be made again any time.

manifests (totals, metrics) + pairs.jsonl --summarise--> Summary --> summary.json
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infinity_mm.quality.diversity import Diversity, Gauge
from infinity_mm.runtime.ledger import fate_counts
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import Manifest, entries
from infinity_mm.synth.choice import STYLE as CHOICE
from infinity_mm.synth.choice import letter_of, stem
from infinity_mm.synth.journey_pass import read_pairs
from infinity_mm.synth.outtake import taken_out

Reasons = dict[str, dict[str, int]]
"""Stage -> reason -> number."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run."""

    name: str
    run_dir: str
    passes: dict[str, dict[str, int]]
    """Pass -> in, born, out, expanded, dropped, merged, quarantined; the first two equal the sum of the others."""
    fates: dict[str, dict[str, int]]
    """Stage -> fate -> number of samples, in the order in which samples meet the stages."""
    dropped: Reasons
    quarantined: Reasons
    calls: dict[str, int]
    """Stage -> requests to a model, those answered by the journal included."""
    calls_from_journal: int
    calls_failed: int
    calls_simulated: int
    """Replies that no model gave; where there are any, every figure here is one of a simulated run."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those the engines took from their prefix caches, where they say so."""
    completion_tokens: int
    images_read: int
    """Images that could be read and differ from each other."""
    questions_planned: int
    pairs_kept: int
    """Question-answer pairs that went into conversations."""
    pairs_rewritten: int
    """Of those, with a rewritten answer."""
    conversations: int
    """Published rows."""
    pairs_taken_out: dict[str, int]
    """Pass -> pairs it took out of conversations again: `cap`, `repeats`."""
    types_covered: dict[str, int]
    """Instruction type -> kept pairs."""
    choice_letters: dict[str, int]
    """Letter -> kept pairs of style `choice` whose right option it marks."""
    diversity: Diversity
    """Of the questions of the kept pairs."""
    published: list[str]
    """Files of the data set."""
    wall_s: float
    phase_s: dict[str, float]
    """Pass -> seconds in this call; next to nothing for a pass that was committed before."""
    predicted: dict[str, dict[str, float]] | None = None
    """Figure -> low, middle, high of `infinity-mm plan`, and measured; None if there was no plan for this run."""


def summarise(
    run: Run, *, name: str, stages: tuple[str, ...], wall_s: float, phase_s: Mapping[str, float]
) -> Summary:
    """Add up a run whose passes are all committed."""
    manifests = {pass_name: _committed(run, pass_name) for pass_name in phase_s}
    fates, dropped, quarantined = _fates(manifests, stages)
    metrics = manifests["journeys"].metrics
    types: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    gauge = Gauge()
    num_rewritten = 0
    taken = taken_out(run)
    for unit in manifests["journeys"].units:
        counted: set[str] = set()
        for sample in read_pairs(run, "journeys", unit):
            if sample.id in taken:
                continue
            types[sample.instruction_type or ""] += 1
            num_rewritten += bool(sample.previous)
            if sample.style == CHOICE:
                letters[letter_of(sample.answer or "") or "none"] += 1
            question = sample.parents[0]
            if question not in counted:
                counted.add(question)
                gauge.add(question, sample.instruction_type or "", stem(sample))
    return Summary(
        name=name,
        run_dir=run.run_dir,
        passes={pass_name: _plain_counts(manifest) for pass_name, manifest in manifests.items()},
        fates=fates,
        dropped=dropped,
        quarantined=quarantined,
        calls={stage: int(metrics[f"calls.{stage}"]) for stage in stages if f"calls.{stage}" in metrics},
        calls_from_journal=_added(metrics, "from_journal."),
        calls_failed=_added(metrics, "failed_calls."),
        calls_simulated=int(metrics.get("simulated", 0)),
        prompt_tokens=_added(metrics, "prompt_tokens."),
        cached_tokens=_added(metrics, "cached_tokens."),
        completion_tokens=_added(metrics, "completion_tokens."),
        images_read=manifests["unique"].totals["out"],
        questions_planned=int(manifests["plan"].metrics["questions_planned"]),
        pairs_kept=types.total(),
        pairs_rewritten=num_rewritten,
        pairs_taken_out=dict(sorted(Counter(taken.values()).items())),
        conversations=manifests["publish"].totals["out"],
        types_covered=dict(sorted(types.items())),
        choice_letters=dict(sorted(letters.items())),
        diversity=gauge.read(),
        published=_published(run, manifests["publish"]),
        wall_s=round(wall_s, 3),
        phase_s={pass_name: round(seconds, 3) for pass_name, seconds in phase_s.items()},
    )


def _committed(run: Run, pass_name: str) -> Manifest:
    manifest = run.manifest(pass_name)
    assert manifest is not None, f"pass {pass_name} is not committed"
    return manifest


def _plain_counts(manifest: Manifest) -> dict[str, int]:
    return {key: number for key, number in manifest.totals.items() if "/" not in key}


def _fates(
    manifests: Mapping[str, Manifest], stages: tuple[str, ...]
) -> tuple[dict[str, dict[str, int]], Reasons, Reasons]:
    """Fates, drops and quarantines by stage; stages of the journey in their order, between the other passes."""
    after = (name for name in ("cap", "dedup", "repeats", "publish") if name in manifests)
    order = ["read", "unique", "tag", "plan", "spread", *stages, *after]
    fates: dict[str, dict[str, int]] = {stage: {} for stage in order}
    dropped: Reasons = defaultdict(dict)
    quarantined: Reasons = defaultdict(dict)
    for manifest in manifests.values():
        for stage, fate, reason, number in fate_counts(manifest.totals):
            by_fate = fates.setdefault(stage, {})
            by_fate[fate] = by_fate.get(fate, 0) + number
            if fate == "dropped":
                dropped[stage][reason] = number
            elif fate == "quarantined":
                quarantined[stage][reason] = number
    return fates, _in_order(dropped, order), _in_order(quarantined, order)


def _in_order(reasons: Reasons, order: list[str]) -> Reasons:
    return {stage: reasons[stage] for stage in order if stage in reasons}


def _added(metrics: Mapping[str, Any], prefix: str) -> int:
    return int(sum(value for key, value in metrics.items() if key.startswith(prefix)))


def _published(run: Run, manifest: Manifest) -> list[str]:
    return [
        run.path(stored.path)
        for entry in entries(run.run_dir, manifest)
        for kind, stored in sorted(entry.objects.items())
        if kind.startswith("file/")
    ]
