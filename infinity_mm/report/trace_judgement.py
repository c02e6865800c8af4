"""What was measured of a sample and what the policy said of it: answers with scores, labels, the critic's reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from infinity_mm.engines.json_reply import BadJson, parse_json_reply
from infinity_mm.quality.policy import Policy, decide_score
from infinity_mm.record import Score
from infinity_mm.report.lookup import NOT_RECORDED
from infinity_mm.synth.critic import LABEL as CRITIC
from infinity_mm.synth.critic import SCHEMA as CRITIC_SCHEMA


def judgement_of(
    sample: Mapping[str, Any] | None,
    calls: Sequence[Mapping[str, Any]] | str,
    config: Mapping[str, Any],
) -> dict[str, Any] | str:
    """Every answer with its score and what the policy said of it, oldest first; labels, also of a mere question."""
    if sample is None or not (sample.get("score") or sample.get("previous") or sample["labels"]):
        return "not judged"
    known = {field.name for field in fields(Policy)}
    settings = {key: value for key, value in config.get("policy", {}).items() if key in known}
    policy = Policy(**settings) if settings else None
    answers = [*sample["previous"], [sample["answer"], sample["score"]]]
    return {
        "answers": [_step(answer, raw, policy) for answer, raw in answers if answer is not None],
        "decision": sample.get("decision"),
        "labels": {label["name"]: label["value"] for label in sample["labels"]},
        "critic": _critic(calls),
        "policy": settings or NOT_RECORDED,
        "rewritten": bool(sample["previous"]),
    }


def score_of(raw: Mapping[str, Any]) -> Score:
    """A score record as JSON has it."""
    return Score(**{**raw, "flags": tuple(raw["flags"])})


def _step(answer: str, raw: Mapping[str, Any] | None, policy: Policy | None) -> dict[str, Any]:
    score = None if raw is None else score_of(raw)
    step: dict[str, Any] = {"answer": answer, "score": None if score is None else asdict(score)}
    if score is None:
        step["policy"] = "not judged"
    elif policy is not None:
        decision = decide_score(score, policy)
        step["policy"] = f"{decision.name} ({decision.reason}): {_cut_offs(policy, score)}"
    return step


def _critic(calls: Sequence[Mapping[str, Any]] | str) -> str:
    """The critic's reason, which a record does not carry: from its last reply, empty if there is none."""
    replies = [] if isinstance(calls, str) else [c for c in calls if c["stage"].startswith(CRITIC)]
    if not replies or isinstance(replies[-1]["reply"], str):
        return ""
    try:
        return parse_json_reply(replies[-1]["reply"].get("text", ""), CRITIC_SCHEMA)["reason"].strip()
    except BadJson:
        return ""


def _cut_offs(policy: Policy, score: Score) -> str:
    low = "no rewriting" if policy.rewrite_at is None else f"rewritten from {policy.rewrite_at:g}"
    value = policy.value(score)
    shown = "no score" if value is None else f"{value:.2f}"
    return f"{shown} by the {policy.by} score, kept from {policy.keep_at:g}, {low}"
