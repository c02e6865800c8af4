"""Where one sample or one image comes from and what became of it, out of what a run recorded.

id or hash, abbreviated --resolve--> ledgers --family--> units --records--> image, tags, plan, calls, scores, fates

Reads one unit at a time; only the ledgers are read whole. What a run did not record is said, never made up.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from infinity_mm.errors import UserError, explain
from infinity_mm.prompts import PromptSet
from infinity_mm.quality.policy import Policy, decide_score
from infinity_mm.record import Sample, Score, Tag
from infinity_mm.report.lookup import (
    column,
    committed_passes,
    files_of_images,
    image_id,
    item_keys,
    pc,
    run_json,
)
from infinity_mm.runtime.ledger import Line, read_ledger
from infinity_mm.runtime.run import Run
from infinity_mm.storage.journal import find_entries
from infinity_mm.storage.manifest import Entry, entries, read_object
from infinity_mm.storage.shards import read_jsonl
from infinity_mm.synth.ids import is_source, num_source_turns
from infinity_mm.synth.journey_pass import PAIRS_FILE
from infinity_mm.taxonomy.mapping import TypeMapping
from infinity_mm.taxonomy.plan_pass import MAPPING_FILE, PLAN_FILE
from infinity_mm.taxonomy.vlm_tagger import PROMPTS as TAG_PROMPTS

NOT_RECORDED = "not recorded"
_MOST_MATCHES = 10
_MOST_FAILURES = 16
_WEIGHTS = re.compile(r"\b[0-9a-f]{32,64}\b")


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Everything the run holds about one image, under all ids that begin with the image's."""

    lines: Sequence[Line]
    """In the order of passes and, within one id, of stages."""
    records: Mapping[str, Mapping[str, Any]]
    """Id -> {"sample", "pass", "detail"} of the fullest record there is of it."""
    published: Mapping[str, Mapping[str, Any]]
    """Id of a conversation -> {"file", "row"}."""


def trace_sample(run: Run, text: str) -> dict[str, Any]:
    """All that led to a sample, and its end; `text` is its id or the unambiguous beginning of one.

    `3fa9.q0.short` stands for `3fa9c1….q0.short`. Raises `UserError` for no match and for several.
    """
    id_ = _resolve_id(run, text)
    family = _family(run, [image_id(id_)])
    lines = [line for line in family.lines if line.id == id_]
    target = next((line.into[0] for line in lines if line.fate == "merged"), None)
    if target is not None and image_id(target) != image_id(id_):
        other = _family(run, [image_id(target)])
        family = _joined(family, other)
    chain = _ancestors(id_, family.lines)
    items = [one for one in chain if "." not in one]
    more = [line.id for line in _lines_into(run, "unique", items)]
    if more:
        items_family = _family(run, more)
        family = _joined(items_family, family)
        chain += [one for one in dict.fromkeys(more) if one not in chain]
    record = _record(id_, family)
    sample = record.get("sample")
    run_file = run_json(run)
    config = run_file.get("config", {})
    image = image_id(id_)
    plan = [] if is_source(id_) else _plan(run, id_, sample, config)
    calls = _calls(run, sample, config)
    return {
        "run": _run_facts(run, run_file),
        "sample": id_,
        "image": _image(run, sample, image, chain, family, config),
        "plan": plan,
        "made": _content(sample),
        "parts": _parts(sample, family, plan, calls, config),
        "calls": calls,
        "judgement": _judgement(sample, config),
        "lineage": [{"id": one, "fates": _plain_lines(family.lines, one)} for one in reversed(chain)],
        "detail": record.get("detail", ""),
        "end": _end(run, id_, family),
    }


def trace_image(run: Run, text: str) -> dict[str, Any]:
    """Every sample of an image and where they ended; `text` is its SHA-256 or the unambiguous beginning of one."""
    sha256 = _resolve_image(run, text)
    heads = _ids_with_image(run, sha256)
    family = _family(run, heads)
    sources = files_of_images(run, set(heads))
    known = [record["sample"] for record in family.records.values() if record["sample"]]
    first = next((s for s in known if any(image["sha256"] == sha256 for image in s["images"])), None)
    run_file = run_json(run)
    config = run_file.get("config", {})
    ids = {line.id for line in family.lines} | set(family.records)
    files = [{"source": s, "key": key} for head in heads for s, key in sources.get(head, [])]
    return {
        "run": _run_facts(run, run_file),
        "sha256": sha256,
        "image": _image(run, first, heads[0], heads, family, config) | {"files": files or NOT_RECORDED},
        "plan": _plan(run, heads[0], first, config),
        "samples": [
            {
                "id": id_,
                **_content(_record(id_, family).get("sample"), brief=True),
                "end": _end(run, id_, family),
            }
            for id_ in sorted(ids)
            if image_id(id_) in heads
        ],
        "published": [{"id": id_, **row} for id_, row in sorted(family.published.items())],
    }


def _ids_with_image(run: Run, sha256: str) -> list[str]:
    """What the run calls an image: the start of its hash; of a page, the ids of the windows that show it."""
    manifest = run.manifest("unique")
    found: list[str] = []
    for entry in entries(run.run_dir, manifest) if manifest else ():
        table = column(run, entry, "shard", ["id", "image_sha"])
        for id_, shas in zip(table["id"].to_pylist(), table["image_sha"].to_pylist()):
            if sha256 in shas:
                found.append(id_)
    return found or [sha256[:16]]


def _run_facts(run: Run, run_file: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dir": run.run_dir,
        "seed": run_file.get("seed", NOT_RECORDED),
        "commit": run_file.get("commit") or NOT_RECORDED,
        "versions": run_file.get("versions", NOT_RECORDED),
        "passes": [manifest.pass_name for manifest in committed_passes(run)],
    }


def _parts(
    sample: Mapping[str, Any] | None,
    family: _Family,
    plan: list[dict[str, Any]] | str,
    calls: list[dict[str, Any]] | str,
    config: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """What a conversation was merged from, in order: each pair with its type, calls, scores and rewrites."""
    if sample is None or not sample.get("turns") or is_source(sample["id"]):
        return []
    parts: list[dict[str, Any]] = []
    for id_ in sample["parents"]:
        if is_source(id_):
            turns = num_source_turns(Sample.from_json(json.dumps(sample)))
            parts.append({"id": id_, "from": "source", "turns": turns})
            continue
        pair = _record(id_, family).get("sample")
        number = id_.partition(".")[2].partition(".")[0]
        why = (
            [question for question in plan if question["question"] == number]
            if isinstance(plan, list)
            else []
        )
        keys = {call["key"] for call in pair["calls"]} if pair else set()
        parts.append(
            {
                "id": id_,
                "from": "synthesis",
                "plan": why or NOT_RECORDED,
                "made": _content(pair),
                "judgement": _judgement(pair, config),
                "calls": [call for call in calls if call["key"] in keys]
                if isinstance(calls, list)
                else calls,
            }
        )
    return parts


def _resolve_id(run: Run, text: str) -> str:
    head, _, tail = text.partition(".")
    found: set[str] = set()
    for manifest in committed_passes(run):
        for entry in entries(run.run_dir, manifest):
            table = column(run, entry, "ledger", ["id", "into"])
            for ids in (table["id"], pc.list_flatten(table["into"])):
                hits = ids.filter(pc.starts_with(ids, pattern=head)) if len(ids) else ids
                found |= {id_ for id_ in hits.to_pylist() if id_.partition(".")[2] == tail or id_ == text}
    if text in found:
        return text
    return _only_one(sorted(found), text, what="sample", run=run)


def _resolve_image(run: Run, text: str) -> str:
    found: set[str] = set()
    for manifest in committed_passes(run):
        for entry in entries(run.run_dir, manifest):
            shas = pc.list_flatten(column(run, entry, "shard", ["image_sha"])["image_sha"])
            if len(shas):
                found |= set(shas.filter(pc.starts_with(shas, pattern=text.lower())).to_pylist())
    return _only_one(sorted(found), text, what="image", run=run)


def _only_one(found: Sequence[str], text: str, *, what: str, run: Run) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        ends = ": ids of images end without, those of questions with `.q0`, of pairs with `.q0.short`"
        raise explain(
            what=f"no {what} of this run begins with `{text}`",
            where=run.run_dir,
            fix="look ids up on the page of `infinity-mm report`" + (ends if what == "sample" else ""),
        )
    listed = "\n    ".join(found[:_MOST_MATCHES])
    more = f"\n    and {len(found) - _MOST_MATCHES} more" if len(found) > _MOST_MATCHES else ""
    raise explain(
        what=f"{len(found)} {what}s begin with `{text}`:\n    {listed}{more}",
        where=run.run_dir,
        fix="give more of it",
    )


def _family(run: Run, heads: Iterable[str]) -> _Family:
    """Ledger lines of all ids that begin with one of the heads; then the records of the units they were in."""
    wanted = sorted(set(heads))
    lines: list[Line] = []
    records: dict[str, dict[str, Any]] = {}
    published: dict[str, dict[str, Any]] = {}
    for manifest in committed_passes(run):
        for entry in entries(run.run_dir, manifest):
            table = column(run, entry, "ledger", ["id"])
            mask = pa.array([False] * len(table), pa.bool_())
            for head in wanted:
                mask = pc.or_(mask, pc.starts_with(table["id"], pattern=head))
            rows = pc.indices_nonzero(mask).to_pylist()
            if not rows:
                continue
            stored = entry.objects["ledger"]
            part = read_ledger(read_object(run.run_dir, stored), where=stored.path)
            lines += [part[row] for row in rows]
            for id_, record in _records(run, entry, wanted):
                records[id_] = record
            if manifest.pass_name == "publish":
                published |= _published(run, entry, {part[row].id for row in rows})
    return _Family(lines=lines, records=records, published=published)


def _records(run: Run, entry: Entry, heads: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    table = column(run, entry, "shard", ["id", "record"])
    for id_, text in zip(table["id"].to_pylist(), table["record"].to_pylist()):
        if image_id(id_) in heads:
            yield id_, {"sample": json.loads(text), "pass": entry.pass_name, "detail": ""}
    marks = [f'"{head}'.encode() for head in heads]
    for kind in (f"file/{PAIRS_FILE}", "dropped", "quarantined"):
        if kind not in entry.objects:
            continue
        data = read_object(run.run_dir, entry.objects[kind])
        # Only lines that name the image are parsed: a unit may hold thousands.
        near = b"\n".join(line for line in data.split(b"\n") if any(mark in line for mark in marks))
        for row in read_jsonl(near):
            if image_id(row["id"]) in heads:
                detail = row.get("error") or row.get("detail") or ""
                yield (
                    row["id"],
                    {"sample": row["sample"], "pass": entry.pass_name, "detail": detail, "row": row},
                )


def _published(run: Run, entry: Entry, ids: set[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in entry.objects:
        if kind.startswith("file/") and kind.endswith(".parquet"):
            for number, id_ in enumerate(column(run, entry, kind, ["id"])["id"].to_pylist()):
                if id_ in ids:
                    name = kind.removeprefix("file/")
                    found[id_] = {"file": name, "row": number, "path": run.path(entry.objects[kind].path)}
    return found


def _lines_into(run: Run, pass_name: str, ids: Sequence[str]) -> list[Line]:
    manifest = run.manifest(pass_name)
    if manifest is None or not ids:
        return []
    found: list[Line] = []
    for entry in entries(run.run_dir, manifest):
        table = column(run, entry, "ledger", ["into"])
        flat = pc.list_flatten(table["into"])
        if len(flat) and pc.any(pc.is_in(flat, pa.array(list(ids), pa.string()))).as_py():
            stored = entry.objects["ledger"]
            part = read_ledger(read_object(run.run_dir, stored), where=stored.path)
            found += [line for line in part if set(line.into) & set(ids)]
    return found


def _joined(first: _Family, second: _Family) -> _Family:
    lines = [*first.lines, *(line for line in second.lines if line not in first.lines)]
    return _Family(
        lines=lines,
        records={**first.records, **second.records},
        published={**first.published, **second.published},
    )


def _ancestors(id_: str, lines: Sequence[Line]) -> list[str]:
    """The id, then what it was made from, back to the image."""
    parents: dict[str, list[str]] = {}
    for line in lines:
        for child in line.into:
            parents.setdefault(child, []).append(line.id)
    chain = [id_]
    for one in chain:
        chain += [parent for parent in parents.get(one, []) if parent not in chain]
    return chain


def _record(id_: str, family: _Family) -> Mapping[str, Any]:
    """Its own record; of a question that went on, which has none, what its pairs carry on of it."""
    if id_ in family.records:
        return family.records[id_]
    if is_source(id_):  # it is the image's own record, with the conversation that came with it
        return (
            {"sample": {**record["sample"], "id": id_}}
            if (record := family.records.get(image_id(id_)))
            else {}
        )
    for child, record in sorted(family.records.items()):
        if ".q" in id_ and child.startswith(f"{id_}.") and record["sample"]:
            calls = [call for call in record["sample"]["calls"] if call["stage"] in ("ask", "check")]
            own = {
                "answer": None,
                "style": None,
                "score": None,
                "previous": [],
                "labels": [],
                "decision": None,
            }
            return {"sample": {**record["sample"], **own, "calls": calls}, "detail": ""}
    return {}


def _image(
    run: Run,
    sample: Mapping[str, Any] | None,
    image: str,
    chain: Sequence[str],
    family: _Family,
    config: Mapping[str, Any],
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
        "tagger": "came with the image" if _tags_came(family, config) else config.get("tagger", NOT_RECORDED),
    }


def _tags_came(family: _Family, config: Mapping[str, Any]) -> bool:
    """Whether the source had tags and they stand: then no tagger was asked."""
    if (config.get("tagger") or {}).get("source_tags", "keep") != "keep":
        return False
    records = [one for one in family.records.values() if one["pass"] == "read" and one["sample"]]
    return any(one["sample"]["tags"] is not None for one in records)


def _plan(
    run: Run, id_: str, sample: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> list[dict[str, Any]] | str:
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
    settings = config.get("plan", {})
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


def _content(sample: Mapping[str, Any] | None, *, brief: bool = False) -> dict[str, Any]:
    if sample is None:
        return {} if brief else {"record": NOT_RECORDED}
    names = ["instruction_type", "style", "question", "answer"]
    found = {name: sample[name] for name in names if sample.get(name) is not None}
    if sample.get("score"):
        found["score"] = _score(sample["score"]).value
    if not brief and sample.get("examples") is not None:
        found["examples_shown"] = sample["examples"]
    if not brief and sample.get("turns"):
        parts = ((turn["role"], turn["content"]) for turn in sample["turns"])
        found["turns"] = [
            {"role": role, "text": "".join(p.get("text", "") for p in content)} for role, content in parts
        ]
    return found


def _calls(
    run: Run, sample: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> list[dict[str, Any]] | str:
    """Each call with its settings, its prompt as far as known, and the reply as the journal has it."""
    if sample is None:
        return NOT_RECORDED
    calls = sample["calls"]
    keys = {call["key"] for call in calls}
    keys |= {f"{key}-failure-{number}" for key in keys for number in range(_MOST_FAILURES)}
    said = find_entries(run.path("journal"), keys) if calls else {}
    prompts = _prompt_texts(config)
    return [
        {
            **call,
            "settings": (settings := _settings(call["stage"], config)),
            "revision": _revision(call["model"], settings["engine"]),
            "prompt_text": prompts.get(call["prompt"].rpartition("/")[2], "not recorded: only its name and hash are"),
            "reply": said.get(call["key"], NOT_RECORDED),
            "failures": [
                said[f"{call['key']}-failure-{number}"]["failure"] for number in range(_MOST_FAILURES)
                if f"{call['key']}-failure-{number}" in said
            ],
        }
        for call in calls
    ]  # fmt: skip


def _settings(label: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """From run.json: what the stage was configured with, and the engine that it asked."""
    stage, _, step = label.partition(".")
    if stage == "tag":
        tagger = dict(config.get("tagger") or {})
        engine = tagger.pop("engine", None) or {}
        return {
            "stage": tagger,
            "role": "tagger",
            "engine": {name: value for name, value in engine.items() if value is not None},
        }
    is_judge = stage == "critic" or "judge" in (stage, step)
    role = "judge" if is_judge else "scorer" if stage == "loss" else "teacher"
    if stage == "blind":
        role = (config.get("blind") or {}).get("role", "teacher")
    engines = config.get("engines") or {}
    engine = engines.get(role) or engines.get("teacher") or {}
    return {
        "stage": config.get("choice" if step == "options" else step or stage, {}),
        "role": role,
        "engine": {name: value for name, value in engine.items() if value is not None},
    }


def _revision(model: str, engine: Mapping[str, Any]) -> str:
    """What pins the weights: the configured revision, or their hash in the fingerprint; `unpinned` if neither does."""
    if engine.get("revision"):
        return str(engine["revision"])
    found = _WEIGHTS.search(model)
    return f"weights {found[0]}" if found else "unpinned"


def _prompt_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """`name@hash` -> text, of the prompt sets installed now: right where the hash is the same."""
    found: dict[str, str] = {}
    for name in (config.get("prompts", "default"), TAG_PROMPTS):
        try:
            prompts = PromptSet.load(name)
        except UserError:
            continue
        found |= {f"{prompt}@{prompts.hash(prompt)}": text for prompt, text in prompts.texts.items()}
    return found


def _judgement(sample: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | str:
    """Every answer with its score and what the policy said of it, oldest first."""
    if sample is None or not (sample.get("score") or sample.get("previous")):
        return "not judged"
    known = {field.name for field in fields(Policy)}
    settings = {key: value for key, value in config.get("policy", {}).items() if key in known}
    policy = Policy(**settings) if settings else None
    answers = [*sample["previous"], [sample["answer"], sample["score"]]]
    steps = []
    for answer, raw in answers:
        score = None if raw is None else _score(raw)
        step: dict[str, Any] = {"answer": answer, "score": None if score is None else asdict(score)}
        if score is None:
            step["policy"] = "not judged"
        elif policy is not None:
            decision = decide_score(score, policy)
            step["policy"] = f"{decision.name} ({decision.reason}): {_cut_offs(policy, score)}"
        steps.append(step)
    return {
        "answers": steps,
        "decision": sample.get("decision"),
        "labels": {label["name"]: label["value"] for label in sample["labels"]},
        "policy": settings or NOT_RECORDED,
        "rewritten": bool(sample["previous"]),
    }


def _cut_offs(policy: Policy, score: Score) -> str:
    low = "no rewriting" if policy.rewrite_at is None else f"rewritten from {policy.rewrite_at:g}"
    value = policy.value(score)
    shown = "no score" if value is None else f"{value:.2f}"
    return f"{shown} by the {policy.by} score, kept from {policy.keep_at:g}, {low}"


def _score(raw: Mapping[str, Any]) -> Score:
    return Score(**{**raw, "flags": tuple(raw["flags"])})


def _plain_lines(lines: Sequence[Line], id_: str) -> list[dict[str, Any]]:
    return [
        {"pass": line.pass_name, "stage": line.stage, "fate": line.fate}
        | ({"reason": line.reason} if line.reason else {})
        | ({"into": list(line.into)} if line.into else {})
        for line in lines
        if line.id == id_
    ]


def _end(run: Run, id_: str, family: _Family) -> dict[str, Any]:
    """How it ended; a merged or expanded sample leads on to what it became part of."""
    lines = [line for line in family.lines if line.id == id_]
    end: dict[str, Any] = {"fate": "continued", "stage": "", "reason": "", "into": []}
    if lines:
        last = lines[-1]
        end = {"fate": last.fate, "stage": last.stage, "reason": last.reason, "into": list(last.into)}
    if id_ in family.published and end["fate"] == "continued":
        end["published"] = family.published[id_]
    elif end["fate"] == "continued":
        end["reason"] = (
            f"put out by pass {lines[-1].pass_name}" if lines else "made, and no pass has read it yet"
        )
    elif end["fate"] == "merged":
        target = end["into"][0]
        if any(line.id == target for line in family.lines) or target in family.published:
            end["then"] = {"id": target, **_end(run, target, family)}
    return end
