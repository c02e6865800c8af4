"""Why a question of an image is of its type: fit of the tags, quota, examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_mm.record import Tag
from infinity_mm.report.lookup import NOT_RECORDED, config_of, image_id
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import entries, read_object
from infinity_mm.taxonomy.mapping import TypeMapping
from infinity_mm.taxonomy.plan_pass import MAPPING_FILE, PLAN_FILE


def plan_of(run: Run, id_: str, sample: Mapping[str, Any] | None) -> list[dict[str, Any]] | str:
    """Why each question of the image, or the one this sample is about, was to be of its type."""
    manifest = run.manifest("plan")
    units = list(entries(run.run_dir, manifest)) if manifest else []
    if not units or f"file/{PLAN_FILE}" not in units[0].objects:
        return NOT_RECORDED
    planned, counts, mapping = [], Counter[str](), TypeMapping(weights={})
    for entry in units:
        plan = json.loads(read_object(run.run_dir, entry.objects[f"file/{PLAN_FILE}"]))
        counts.update(question["type"] for questions in plan.values() for question in questions)
        planned += list(enumerate(plan.get(image_id(id_), [])))
        if f"file/{MAPPING_FILE}" in entry.objects:
            mapping = TypeMapping.from_json(read_object(run.run_dir, entry.objects[f"file/{MAPPING_FILE}"]))
    tags = [Tag(**tag) for tag in (sample or {}).get("tags") or ()]
    fits = mapping.score(tags)
    best = max(fits.values(), default=0.0)
    wanted = id_.partition(".")[2].partition(".")[0]
    settings = config_of(run).get("plan", {})
    return [
        {
            "question": f"q{number}",
            "type": question["type"],
            "examples": question["examples"],
            "styles": question["styles"],
            "fit": round(fits[question["type"]], 4) if question["type"] in fits else None,
            "fit_rank": list(fits).index(question["type"]) + 1 if question["type"] in fits else None,
            "num_types_that_fit": sum(1 for v in fits.values() if v >= settings.get("min_fit", 0) * best),
            "best_tags": _best_tags(tags, mapping.weights.get(question["type"], {})),
            "planned_of_type": counts[question["type"]],
            "planned_in_all": counts.total(),
            "types_in_plan": len(counts),
            "why": _why_type(question["type"], fits, best, settings),
        }
        for number, question in planned
        if not wanted.startswith("q") or wanted == f"q{number}"
    ]


def _best_tags(tags: Sequence[Tag], row: Mapping[str, float]) -> list[dict[str, Any]]:
    """The image's tags that speak most for a type."""
    ranked = sorted(tags, key=lambda tag: (-tag.score * row.get(tag.name, 0.0), tag.name))
    return [
        {"tag": tag.name, "score": tag.score, "weight": round(row[tag.name], 4)} for tag in ranked[:3]
        if tag.name in row
    ]  # fmt: skip


def _why_type(type_: str, fits: Mapping[str, float], best: float, settings: Mapping[str, Any]) -> str:
    if type_ not in fits:
        return "suits any image: no tag speaks for it, it filled a place that was free"
    least = settings.get("min_fit", 0.0)
    return (
        f"the image's tags fit it with {fits[type_]:.3f}, {fits[type_] / best:.0%} of the image's best type (at least "
        f"{least:.0%} is needed); of the types that fit, those with the least of their quota take first"
    )
