"""The calls behind a sample: which prompt, model, revision and settings, and what was said.

Call* of a sample --journals of the run and of those it replays--> reply, failures
                  \\-run.json of the run that has the reply-------> settings, engine
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from infinity_mm.errors import UserError
from infinity_mm.prompts import PromptSet
from infinity_mm.report.lookup import NOT_RECORDED, config_of
from infinity_mm.runtime.run import Run
from infinity_mm.storage.journal import find_entries
from infinity_mm.synth.exchange import REPAIR
from infinity_mm.taxonomy.vlm_tagger import PROMPTS as TAG_PROMPTS

_MOST_FAILURES = 16
_REVISION = re.compile(r"@([^@,\s]+), ")
"""As an endpoint's fingerprint has it, see `engines/openai.py`."""
_WEIGHTS = re.compile(r"\b[0-9a-f]{32,64}\b")
_SECTIONS = {"options": "choice", "distinct": "ask"}
"""Where the settings of a call lie under another name: a question that is asked again is asked like the first."""
_UNKNOWN_PROMPT = "not recorded: only its name and hash are"


def calls_of(runs: Sequence[Run], sample: Mapping[str, Any] | None) -> list[dict[str, Any]] | str:
    """Each call with its settings, its prompt as far as known, and the reply as a journal has it.

    `runs`: the oldest first. Whichever of them has the reply made the call, so its settings are told.
    """
    if sample is None:
        return NOT_RECORDED
    # A replay that asks the same again leaves the same call twice.
    calls = list({(call["stage"], call["key"]): call for call in sample["calls"]}.values())
    keys = {call["key"] for call in calls}
    keys |= {_failure(key, number) for key in keys for number in range(_MOST_FAILURES)}
    said = [(config_of(run), find_entries(run.path("journal"), keys) if calls else {}) for run in runs]
    prompts = {name: text for config, _ in said for name, text in _prompt_texts(config).items()}
    return [_told(call, said, prompts) for call in calls]


def _told(
    call: Mapping[str, Any],
    said: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    prompts: Mapping[str, str],
) -> dict[str, Any]:
    key = call["key"]
    newest_first = list(reversed(said))
    config, replies = next(
        (one for one in newest_first if key in one[1] or _failure(key, 0) in one[1]), newest_first[0]
    )
    failures = [
        entries[_failure(key, number)]["failure"]
        for _, entries in said
        for number in range(_MOST_FAILURES)
        if _failure(key, number) in entries
    ]
    return {
        **call,
        "settings": settings_of(call["stage"], config),
        "revision": revision_of(call["model"]),
        "prompt_text": prompts.get(call["prompt"].rpartition("/")[2], _UNKNOWN_PROMPT),
        "reply": replies.get(key, NOT_RECORDED),
        "failures": failures,
    }


def settings_of(label: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """From run.json: what a call was configured with, and the engine that it asked.

    `label`: stage, or stage and step: `rewrite.judge`, and with `.repair` where JSON was mended.
    """
    stage, _, step = label.removesuffix(f".{REPAIR}").partition(".")
    if stage == "tag":
        tagger = dict(config.get("tagger") or {})
        return {"stage": tagger, "role": "tagger", "engine": _known(tagger.pop("engine", None))}
    is_judge = stage == "critic" or "judge" in (stage, step)
    role = "judge" if is_judge else "scorer" if stage == "loss" else "teacher"
    if stage == "blind":
        role = (config.get("blind") or {}).get("role", "teacher")
    engines = config.get("engines") or {}
    section = step or stage
    return {
        "stage": config.get(_SECTIONS.get(section, section), {}),
        "role": role,
        "engine": _known(engines.get(role) or engines.get("teacher")),
    }


def revision_of(model: str) -> str:
    """What pins the weights, by the fingerprint recorded with the call: a revision, a hash, or `unpinned`."""
    if found := _REVISION.search(model):
        return found[1]
    weights = _WEIGHTS.search(model)
    return f"weights {weights[0]}" if weights else "unpinned"


def _known(engine: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (engine or {}).items() if value is not None}


def _failure(key: str, number: int) -> str:
    return f"{key}-failure-{number}"


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
