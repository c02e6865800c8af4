"""A trace for people: one screen per sample, in the order in which things happened.

Everything from the run is printed as plain text: no console markup, no control characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infinity_mm.report.text import clip

_CHARS = 1500
_NAME_CHARS = 14
_NAMES = {"instruction_type": "type", "examples_shown": "examples"}
_VLM_TAGGER = ("engine", "list_vocabulary", "max_new_tokens")
"""Settings of a tagger that only a VLM has."""


def print_sample(trace: Mapping[str, Any], console: Console) -> None:
    """The answer of `trace_sample`."""
    _title(console, f"Sample {trace['sample']}")
    _line(console, "end", told(trace["end"]))
    if trace["detail"]:
        _line(console, "detail", trace["detail"])
    _image(trace["image"], console)
    if not trace["parts"]:
        _plan(trace["plan"], console)
    _title(console, "What it says")
    _made(trace["made"], console)
    if trace["parts"]:
        for part in trace["parts"]:
            _part(part, console)
    else:
        _judgement(trace["judgement"], console)
        _calls(trace["calls"], console)
    _title(console, "Stages it went through, from the file to the end")
    width = max(len(step["id"]) for step in trace["lineage"])
    for step in trace["lineage"]:
        _line(console, step["id"].ljust(width), ", ".join(_fate(fate) for fate in step["fates"]) or "made")
    _run(trace["run"], console)


def print_image(trace: Mapping[str, Any], console: Console) -> None:
    """The answer of `trace_image`."""
    _title(console, f"Image {trace['sha256']}")
    _image(trace["image"], console)
    _plan(trace["plan"], console, with_examples=True)
    table = Table(title="Samples of this image", title_justify="left")
    for name in ("id", "question and answer", "score", "end"):
        table.add_column(name, overflow="fold")
    head = trace["sha256"][:16]
    for row in trace["samples"]:
        said = "\n".join(_plain(row[key]) for key in ("question", "answer") if row.get(key))
        score = "" if row.get("score") is None else f"{row['score']:.2f}"
        cells = (
            row["id"].removeprefix(head) or row["id"],
            said,
            score,
            told(row["end"]).replace(f"{head}.", "."),
        )
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    console.print(table)
    _title(console, "Published rows")
    for row in trace["published"]:
        _line(console, row["id"], f"row {row['row']} of {row['file']}")
    if not trace["published"]:
        _line(console, "none", "no conversation about this image is in a published file")
    _run(trace["run"], console)


def told(end: Mapping[str, Any]) -> str:
    """An end in words: `merged into X, published as row 4 of train-…`."""
    if "published" in end:
        return f"published as row {end['published']['row']} of {end['published']['file']}"
    where = f" in {end['stage']}" if end["stage"] else ""
    reason = f": {end['reason']}" if end["reason"] else ""
    into = f" into {', '.join(end['into'])}" if end["into"] else ""
    then = f", which was {told(end['then'])}" if "then" in end else ""
    return f"{end['fate']}{where}{into}{reason}{then}"


def _fate(fate: Mapping[str, Any]) -> str:
    """A stage alone where the sample went on."""
    reason = f" ({fate['reason']})" if fate.get("reason") else ""
    into = f" into {' '.join(fate['into'])}" if fate.get("into") else ""
    return fate["stage"] if fate["fate"] == "continued" else f"{fate['stage']}: {fate['fate']}{into}{reason}"


def _made(made: Mapping[str, Any], console: Console) -> None:
    for name, value in made.items():
        if name == "turns":
            for turn in value:
                _line(console, turn["role"], turn["text"])
        elif name == "score":
            _line(console, name, f"{value:.2f}")
        else:
            shown = " | ".join(value) if name == "examples_shown" else value
            _line(console, _NAMES.get(name, name), shown)


def _image(image: Mapping[str, Any], console: Console) -> None:
    _title(console, "The image")
    found = image["files"]
    if isinstance(found, str):
        _line(console, "file", found)
    else:
        for file in found:
            _line(console, "file", f"{file['key']}, listed by source {file['source']}")
    for ref in image.get("images", ()):
        _line(console, "sha256", ref["sha256"])
        _line(console, "source", ref["source"])
        _line(console, "licence", ref["licence"])
        if "page" in ref:
            _line(console, "page", f"{ref['page']}, counted from 0")
        _line(console, "size", f"{ref['width']} x {ref['height']} px")
        _line(console, "bytes at", ref["uri"])
    for name in ("uri", "licence", "sha256"):
        if name in image:
            _line(console, name, image[name])
    if "tags" in image:
        tags = image["tags"]
        told_ = tags if isinstance(tags, str) else ", ".join(f"{t['name']} {t['score']:.3f}" for t in tags)
        _line(console, "tags", told_ or "none above the tagger's threshold")
    if isinstance(image.get("tagger"), Mapping):
        _line(console, "tagged by", _tagger(image["tagger"]))
    elif "tagger" in image:
        _line(console, "tagged by", image["tagger"])


def _tagger(settings: Mapping[str, Any]) -> str:
    is_vlm = settings.get("model") == "vlm"
    engine = settings.get("engine") or {}
    shown = {name: value for name, value in settings.items() if is_vlm or name not in _VLM_TAGGER}
    engine = {"engine": engine.get("model") if is_vlm else None}
    return _settings({"model": settings.get("model")} | shown | engine)


def _plan(plan: Sequence[Mapping[str, Any]] | str, console: Console, *, with_examples: bool = False) -> None:
    _title(console, "Why this type of question")
    if isinstance(plan, str) or not plan:
        _line(console, "plan", plan if isinstance(plan, str) else "no question was planned")
        return
    for question in plan:
        _line(console, question["question"], f"{question['type']}: {question['why']}")
        for tag in question["best_tags"]:
            _line(console, "", f"tag {tag['tag']} {tag['score']:.3f} x weight {tag['weight']:.3f}")
        _line(
            console, "quota",
            f"{question['planned_of_type']} of {question['planned_in_all']} planned questions are of this type; "
            f"{question['types_in_plan']} types are in the plan",
        )  # fmt: skip
        if with_examples:
            _line(console, "examples", " | ".join(question["examples"]))


def _part(part: Mapping[str, Any], console: Console) -> None:
    """A pair of a conversation, or what came with the image."""
    if part["from"] == "source":
        _title(console, f"{part['id']}: came with the image")
        _line(
            console,
            "turns",
            f"the first {part['turns']}, as the source has them; no model made or judged them",
        )
        return
    _title(console, f"{part['id']}: made")
    _made(part["made"], console)
    _plan(part["plan"], console)
    _judgement(part["judgement"], console)
    _calls(part["calls"], console)


def _judgement(judgement: Mapping[str, Any] | str, console: Console) -> None:
    _title(console, "Scores and rewriting")
    if isinstance(judgement, str):
        _line(console, "judge", judgement)
        return
    for number, step in enumerate(judgement["answers"]):
        name = "first answer" if number == 0 else f"rewrite {number}"
        _line(console, name, step["answer"] or "")
        _line(console, "", step.get("policy", "the policy is not recorded"))
        if step["score"]:
            known = {k: v for k, v in step["score"].items() if v not in (None, "", (), [])}
            _line(console, "", f"the judge: {_settings(known)}")
    if judgement["critic"]:
        _line(console, "critic", judgement["critic"])
    if judgement["labels"]:
        _line(console, "labels", ", ".join(f"{name} {v:.3g}" for name, v in judgement["labels"].items()))
    _line(console, "decision", judgement["decision"] or "none")


def _calls(calls: Sequence[Mapping[str, Any]] | str, console: Console) -> None:
    _title(console, "Calls to models")
    if isinstance(calls, str) or not calls:
        _line(console, "calls", calls if isinstance(calls, str) else "none")
        return
    for call in calls:
        _line(console, call["stage"], f"{call['settings']['role']}: {call['model']}")
        _line(console, "  revision", call["revision"])
        _line(console, "  prompt", f"{call['prompt']}: {call['prompt_text']!r}")
        _line(console, "  sampling", f"temperature {call['temperature']:g}, seed {call['seed']}")
        _line(console, "  settings", _settings(call["settings"]["stage"]) or "none")
        reply = call["reply"]
        if isinstance(reply, str):
            _line(console, "  reply", reply)
        elif "mean_logprob" in reply:
            tokens = f"mean over {reply['num_tokens']} tokens, after {reply['prompt_tokens']} tokens"
            _line(console, "  likelihood", f"{reply['mean_logprob']:.3f} nats ({tokens})")
        else:
            tokens = f"{reply.get('prompt_tokens', 0)} + {reply.get('completion_tokens', 0)} tokens"
            _line(console, "  reply", f"{reply.get('text', '')!r} ({reply.get('finish_reason')}, {tokens})")
            if reply.get("choice_logprobs"):
                shares = " ".join(f"{math.exp(value):.2f}" for value in reply["choice_logprobs"])
                _line(console, "  choices", f"probabilities in order: {shares}")
        for failure in call["failures"]:
            _line(console, "  failure", f"{failure['reason']}: {failure['detail']}")
        _line(console, "  journal", call["key"])


def _run(run: Mapping[str, Any], console: Console) -> None:
    _title(console, "The run")
    _line(console, "folder", run["dir"])
    for before in run["replays"]:
        _line(console, "replays", before)
    _line(console, "seed", str(run["seed"]))
    _line(console, "commit", str(run["commit"]))
    _line(console, "passes", ", ".join(run["passes"]))


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(_plain(text), style="bold"))


def _line(console: Console, name: str, value: Any) -> None:
    """A name and what stands for it. A terminal gets it wrapped beside the name, a file as one line to search in."""
    text = Text(_plain(value if isinstance(value, str) else _json(value)))
    label = Text(_plain(name).ljust(_NAME_CHARS), style="dim")
    if not console.is_terminal:
        console.print(Text.assemble("  ", label, " ", text), soft_wrap=True)
        return
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(width=1)
    row.add_column(width=max(_NAME_CHARS, len(label)))
    row.add_column(overflow="fold")
    row.add_row("", label, text)
    console.print(row)


def _settings(settings: Mapping[str, Any]) -> str:
    """`temperature=0.7, max_new_tokens=48`; what is not set is left out, a mapping stands in braces."""
    return ", ".join(f"{name}={_value(value)}" for name, value in settings.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{_settings(value)}}}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(text: Any) -> str:
    return clip(str(text), _CHARS)
