"""The card of a data set: what it is, how it was made, what became of everything, and what it is not.

Facts (of the files) + summary.json, run.json (of the run) --dataset_card--> README.md
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_mm.engines.openai import UNPINNED
from infinity_mm.publishing.bundle import MANIFEST
from infinity_mm.publishing.facts import Facts
from infinity_mm.publishing.markdown import front_matter, safe, size, table

STRIP = "assets/samples.webp"
_FATES = ("continued", "expanded", "merged", "dropped", "quarantined")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SIZES = (*_SIZES, (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))
HUB_LICENCES = frozenset("""
    apache-2.0 bsd-3-clause cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 gpl-3.0 mit odbl odc-by pddl
""".split())  # fmt: skip  # noqa: SIM905
"""SPDX names, in lower case, that the Hub knows as licences."""


def dataset_card(
    *,
    repo: str,
    name: str,
    facts: Facts,
    data_files: Sequence[tuple[str, int]],
    summary: Mapping[str, Any],
    run: Mapping[str, Any],
) -> str:
    """Markdown. `data_files` are (path, bytes); nothing in the card depends on the time or on this machine."""
    sections = [
        _what(repo, name, facts, data_files),
        _loading(repo),
        _samples(facts),
        _made(facts, run),
        _conservation(summary),
        _licences(facts),
        _limits(facts, summary, run),
        [
            f"`{MANIFEST}` lists every file with its size and SHA-256. The set was put on `main` in one commit, after "
            "the Hub's own listing had shown every file with that size and hash.",
            "",
        ],
    ]
    return front_matter(_matter(name, facts)) + "\n".join(line for lines in sections for line in lines)


def hub_licence(licences: Mapping[str, str]) -> dict[str, str]:
    """The Hub's `license` for a set of images: theirs if they share one, `other` if not, `unknown` if any is."""
    found = {licence.strip().lower() for licence in licences.values()}
    if found and found <= HUB_LICENCES and len(found) == 1:
        return {"license": found.pop()}
    if not found or "unknown" in found:
        return {"license": "unknown"}
    return {"license": "other", "license_name": "see-the-table-of-licences"}


def _matter(name: str, facts: Facts) -> dict[str, Any]:
    return {
        **hub_licence(facts.licences),
        "pretty_name": name,
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "size_categories": [next((label for most, label in _SIZES if facts.rows < most), "100M<n<1B")],
        "tags": ["synthetic", "vision-language", "instruction-tuning", "infinity-mm"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
        ],
    }


def _what(repo: str, name: str, facts: Facts, data_files: Sequence[tuple[str, int]]) -> list[str]:
    total = sum(number for _, number in data_files)
    return [
        f"# {safe(name)}",
        "",
        f"Conversations about images, written by models: {facts.rows:,} rows with {facts.pairs:,} question-answer "
        f"pairs about {facts.images:,} images, in {len(data_files):,} Parquet files of {size(total)} in all. Image "
        "bytes are inside.",
        "",
        "A row has `id`, `images` (decoded by `datasets`), `messages` (role and typed content, as chat templates take "
        "them), `source` and `licence` of the images, and `provenance`: JSON with the image hashes and, for every "
        "pair, its instruction type, answer style, score, and each model call behind it (model, prompt hash, seed).",
        "",
        *table(["instruction type", "pairs"], _counted(facts.types)),
        "",
        *table(["answer style", "pairs"], _counted(facts.styles)),
        "",
    ]


def _loading(repo: str) -> list[str]:
    return [
        "## Load it",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("{repo}", split="train")  # or streaming=True',
        "row = next(iter(rows))",
        'print(row["images"][0].size, row["messages"][0]["content"])',
        "```",
        "",
    ]


def _samples(facts: Facts) -> list[str]:
    if not facts.samples:
        return []
    rows = [[i, safe(s.question), safe(s.answer)] for i, s in enumerate(facts.samples, start=1)]
    return [
        "## Samples",
        "",
        f"The first exchange about {len(rows)} pictures, spread evenly over the set and not chosen.",
        "",
        f"![{len(rows)} pictures of the set]({STRIP})",
        "",
        *table(["picture", "question", "answer"], rows),
        "",
    ]


def _made(facts: Facts, run: Mapping[str, Any]) -> list[str]:
    config: Mapping[str, Any] = run.get("config", {})
    policy = config.get("policy", {})
    lines = [
        "## How it was made",
        "",
        "With the infinity_mm workbench: every image is read and hashed, tagged, given "
        "instruction types by a written plan, and walked through the stages below by a vision-language model; near "
        "duplicates are removed at the end. Counted here are the calls behind published pairs.",
        "",
        *table(["stage", "model", "calls"], [[s, safe(m), n] for (s, m), n in sorted(facts.calls.items())]),
        "",
        "Prompts, as set/name@hash: " + ", ".join(f"`{prompt}`" for prompt in sorted(facts.prompts)) + ".",
        "",
    ]
    if config:
        stages = ", ".join(f"`{stage}`" for stage in config.get("stages", ()))
        rules = ", ".join(f"{key} {value}" for key, value in sorted(policy.items()))
        lines += [
            f"Stages in order: {stages}. Seed {run.get('seed')}. Policy on scores: {rules or 'none'}.",
            "",
        ]
    versions = ", ".join(f"{key} {value}" for key, value in sorted(run.get("versions", {}).items()))
    return [*lines, f"Versions: {versions}.", ""]


def _conservation(summary: Mapping[str, Any]) -> list[str]:
    fates = {stage: counts for stage, counts in summary.get("fates", {}).items() if counts}
    rows = [[stage, *(counts.get(fate) for fate in _FATES)] for stage, counts in fates.items()]
    reasons = [
        [stage, safe(reason), kind, number]
        for kind in ("dropped", "quarantined")
        for stage, found in summary.get(kind, {}).items()
        for reason, number in sorted(found.items())
    ]
    lines = [
        "## What became of everything",
        "",
        "At every stage each sample has exactly one fate; sets of ids are compared, and a run fails if they disagree.",
        "",
        *table(["stage", *_FATES], rows),
        "",
    ]
    if reasons:
        lines += [*table(["stage", "reason", "fate", "samples"], reasons), ""]
    return lines


def _licences(facts: Facts) -> list[str]:
    rows = [[safe(source), safe(licence), n] for (source, licence), n in sorted(facts.sources.items())]
    return [
        "## Licences",
        "",
        "Of the images, as their sources state them. The texts are outputs of the models above, whose own licences and "
        "terms of use apply to them.",
        "",
        *table(["source", "licence", "images"], rows),
        "",
    ]


def _limits(facts: Facts, summary: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    limits = ["Questions and answers were written by models and checked by models, not by people."]
    by_stage: dict[str, set[str]] = {}
    for stage, model in facts.calls:
        by_stage.setdefault(stage, set()).add(model)
    judges, writers = by_stage.get("judge", set()), by_stage.get("answer", set())
    unpinned = sorted({safe(model) for _, model in facts.calls if f"@{UNPINNED}, " in model})
    for model in unpinned:
        limits.append(
            f"Nobody said which weights these were, so that the same ones cannot be asked again: {model}."
        )
    if not judges:
        limits.append("No model judged the answers.")
    elif judges & writers:
        limits.append(
            "The model that wrote the answers also judged them; a judge is lenient with its own mistakes."
        )
    if facts.rewritten:
        limits.append(f"{facts.rewritten:,} of {facts.pairs:,} answers were rewritten after a low score.")
    unknown = sum(1 for licence in facts.licences.values() if licence == "unknown")
    if unknown:
        limits.append(f"The licence of {unknown:,} of {facts.images:,} images is unknown.")
    if "contam" not in str(run.get("config", {}).get("dedup", {})):
        limits.append("Images and questions of evaluation sets were not searched for.")
    before, after = summary.get("answer_accuracy_before"), summary.get("answer_accuracy_after")
    if before is not None and after is not None:
        limits.append(
            f"The images are drawn, so the truth is known: {before:.1%} of the answers were right before the policy, "
            f"{after:.1%} of those it kept."
        )
    limits.append("People, places and signs in the images were not looked for and not hidden.")
    return ["## Known limits", "", *(f"- {limit}" for limit in limits), ""]


def _counted(counts: Counter[str]) -> list[list[Any]]:
    return [
        [safe(name), number] for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
