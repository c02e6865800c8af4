"""Where one sample or one image comes from and what became of it, out of what a run recorded.

id or hash, abbreviated --resolve--> ledgers --family--> units --records--> image, tags, plan, calls, scores, fates

A replay has its questions, plan and earlier calls from the run that it replays, which is looked into as well. What no
run recorded is said, never made up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_mm.record import Sample, canonical_json
from infinity_mm.report.family import Family, ancestors, end_of, family_of, fates_of, record_of
from infinity_mm.report.lookup import (
    NOT_RECORDED,
    committed_passes,
    config_of,
    files_of_images,
    history,
    image_id,
    item_keys,
    ledger_lines,
    run_json,
)
from infinity_mm.report.resolve import ids_with_image, resolve_id, resolve_image
from infinity_mm.report.trace_calls import calls_of
from infinity_mm.report.trace_judgement import judgement_of, score_of
from infinity_mm.report.trace_plan import plan_of
from infinity_mm.runtime.run import Run
from infinity_mm.storage.manifest import entries, read_object
from infinity_mm.synth.ids import is_source, num_source_turns
from infinity_mm.taxonomy.tag_pass import TAGGER_FILE


def trace_sample(run: Run, text: str) -> dict[str, Any]:
    """All that led to a sample, and its end; `text` is its id or the unambiguous beginning of one.

    `3fa9.q0.short` stands for `3fa9c1….q0.short`. Raises `UserError` for no match and for several.
    """
    id_ = resolve_id(run, text)
    runs = history(run)
    config = config_of(run)
    family = family_of(runs, [image_id(id_)])
    target = next((line.into[0] for line in family.lines if (line.id, line.fate) == (id_, "merged")), None)
    if target is not None and image_id(target) != image_id(id_):
        family = family | family_of(runs, [image_id(target)])
    chain, family = _to_the_items(runs, ancestors(id_, family.lines), family)
    record = record_of(id_, family, config.get("stages", ()))
    sample = record.get("sample")
    calls = calls_of(runs, sample)
    plan = [] if is_source(id_) else plan_of(runs[0], id_, sample)
    return {
        "run": _run_facts(run, runs),
        "sample": id_,
        "image": _image(runs[0], sample, image_id(id_), chain, family),
        "plan": plan,
        "made": _content(sample),
        "parts": _parts(sample, family, plan, calls, config),
        "calls": calls,
        "judgement": judgement_of(sample, calls, config),
        "lineage": [{"id": one, "fates": fates_of(one, family)} for one in reversed(chain)],
        "detail": record.get("detail", ""),
        "end": end_of(id_, family),
    }


def trace_image(run: Run, text: str) -> dict[str, Any]:
    """Every sample of an image and where they ended; `text` is its SHA-256 or the unambiguous beginning of one."""
    sha256 = resolve_image(run, text)
    runs = history(run)
    config = config_of(run)
    heads = ids_with_image(runs[0], sha256)
    family = family_of(runs, heads)
    sources = files_of_images(runs[0], set(heads))
    known = [record["sample"] for record in family.records.values() if record["sample"]]
    first = next((s for s in known if any(image["sha256"] == sha256 for image in s["images"])), None)
    ids = {line.id for line in family.lines} | set(family.records)
    listed = [{"source": s, "key": key} for head in heads for s, key in sources.get(head, [])]
    return {
        "run": _run_facts(run, runs),
        "sha256": sha256,
        "image": _image(runs[0], first, heads[0], heads, family) | {"files": listed or NOT_RECORDED},
        "plan": plan_of(runs[0], heads[0], first),
        "samples": [
            {
                "id": id_,
                **_content(record_of(id_, family, config.get("stages", ())).get("sample"), brief=True),
                "end": end_of(id_, family),
            }
            for id_ in sorted(ids)
            if image_id(id_) in heads
        ],
        "published": [{"id": id_, **row} for id_, row in sorted(family.published.items())],
    }


def _run_facts(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    run_file = run_json(run)
    return {
        "dir": run.run_dir,
        "replays": [one.run_dir for one in runs[:-1]],
        "seed": run_file.get("seed", NOT_RECORDED),
        "commit": run_file.get("commit") or NOT_RECORDED,
        "versions": run_file.get("versions", NOT_RECORDED),
        "passes": [manifest.pass_name for manifest in committed_passes(run)],
    }


def _to_the_items(runs: Sequence[Run], chain: list[str], family: Family) -> tuple[list[str], Family]:
    """The chain and the family with the listed items, whose ids do not begin with the image's."""
    manifest = runs[0].manifest("unique")
    images = [one for one in chain if "." not in one]
    more = [line.id for line in ledger_lines(runs[0], manifest, into=images)] if manifest and images else []
    if not more:
        return chain, family
    return [*chain, *(one for one in dict.fromkeys(more) if one not in chain)], family_of(runs, more) | family


def _parts(
    sample: Mapping[str, Any] | None,
    family: Family,
    plan: list[dict[str, Any]] | str,
    calls: list[dict[str, Any]] | str,
    config: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """What a conversation was merged from, in order: each pair with its type, calls, scores and rewrites."""
    if sample is None or not sample.get("turns") or is_source(sample["id"]):
        return []
    return [
        {"id": id_, "from": "source", "turns": num_source_turns(Sample.from_json(canonical_json(sample)))}
        if is_source(id_)
        else _pair(id_, family, plan, calls, config)
        for id_ in sample["parents"]
    ]


def _pair(
    id_: str,
    family: Family,
    plan: list[dict[str, Any]] | str,
    calls: list[dict[str, Any]] | str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    pair = record_of(id_, family).get("sample")
    number = id_.partition(".")[2].partition(".")[0]
    why = [] if isinstance(plan, str) else [question for question in plan if question["question"] == number]
    keys = {call["key"] for call in pair["calls"]} if pair else set[str]()
    own = calls if isinstance(calls, str) else [call for call in calls if call["key"] in keys]
    return {
        "id": id_,
        "from": "synthesis",
        "plan": why or NOT_RECORDED,
        "made": _content(pair),
        "judgement": judgement_of(pair, own, config),
        "calls": own,
    }


def _image(
    run: Run, sample: Mapping[str, Any] | None, image: str, chain: Sequence[str], family: Family
) -> dict[str, Any]:
    keys = item_keys(run, set(chain))
    listed = [{"item": item, "source": keys[item][0], "key": keys[item][1]} for item in chain if item in keys]
    facts: dict[str, Any] = {"files": listed or NOT_RECORDED}
    rows = [record.get("row") for one in chain if (record := family.records.get(one))]
    if sample is None:
        row = next((row for row in rows if row), {})
        return facts | {
            "uri": row.get("uri") or NOT_RECORDED,
            "licence": NOT_RECORDED,
            "sha256": NOT_RECORDED,
        }
    tags = sample.get("tags")
    if tags is None:
        tagged = family.records.get(image, {}).get("sample") or {}
        tags = tagged.get("tags")
    return facts | {
        "images": [{k: v for k, v in ref.items() if v is not None} for ref in sample["images"]],
        "tags": tags if tags is not None else NOT_RECORDED,
        "tagger": _tagger(run, family),
    }


def _tagger(run: Run, family: Family) -> dict[str, Any] | str:
    """Settings of the tagger and, where it is no engine, whose calls tell of it, its fingerprint."""
    config = config_of(run)
    if _tags_came(family, config):
        return "came with the image"
    if "tagger" not in config:
        return NOT_RECORDED
    manifest = run.manifest("tag")
    for entry in entries(run.run_dir, manifest) if manifest else ():
        if f"file/{TAGGER_FILE}" in entry.objects:
            return config["tagger"] | json.loads(
                read_object(run.run_dir, entry.objects[f"file/{TAGGER_FILE}"])
            )
    return config["tagger"]


def _tags_came(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether the source had tags and they stand: then no tagger was asked."""
    if (config.get("tagger") or {}).get("source_tags", "keep") != "keep":
        return False
    records = [one for one in family.records.values() if one["pass"] == "read" and one["sample"]]
    return any(one["sample"]["tags"] is not None for one in records)


def _content(sample: Mapping[str, Any] | None, *, brief: bool = False) -> dict[str, Any]:
    if sample is None:
        return {} if brief else {"record": NOT_RECORDED}
    names = ["instruction_type", "style", "question", "answer"]
    found = {name: sample[name] for name in names if sample.get(name) is not None}
    if sample.get("score"):
        found["score"] = score_of(sample["score"]).value
    if not brief and sample.get("examples") is not None:
        found["examples_shown"] = sample["examples"]
    if not brief and sample.get("turns"):
        parts = ((turn["role"], turn["content"]) for turn in sample["turns"])
        found["turns"] = [
            {"role": role, "text": "".join(p.get("text", "") for p in content)} for role, content in parts
        ]
    return found
