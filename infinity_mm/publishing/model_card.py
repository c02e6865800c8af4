"""The card of a model: what it is, what it was trained on, what was measured, and what it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infinity_mm.publishing.markdown import front_matter, safe, table

_OURS = "infinity_mm"


_SETTINGS = (
    "steps", "epochs", "seed", "global_batch_rows", "row_tokens", "over_long", "loss_weighting", "optimizer",
    "precision",
)  # fmt: skip


def model_card(
    *,
    repo: str,
    config: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
    licence: str | None = None,
    notes: str = "",
) -> str:
    """Markdown from config.json, the run.json of each training stage (oldest first) and evaluations by file name.

    `licence` and `notes` are the front matter's licence and the text of a card that was there before. No path of this
    machine is written.
    """
    base = _base(stages[0]) if stages else None
    ours = config.get("model_type") == _OURS
    matter: dict[str, Any] = {"license": licence} if licence else {}
    matter |= {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if base is not None and base.count("/") == 1:
        matter["base_model"] = base
    matter["tags"] = ["vision-language", "infinity-mm"]
    lines = [
        f"# {safe(repo.rpartition('/')[2])}",
        "",
        f"A vision-language model, `{safe(str((config.get('architectures') or ['?'])[0]))}` "
        f"(`{config.get('model_type')}`), weights in {safe(str(config.get('dtype', 'unknown type')))}, "
        "safetensors only.",
        "",
        "```python",
        *(["import infinity_mm  # registers the architecture: pip install infinity-mm"] if ours else []),
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f'model = AutoModelForImageTextToText.from_pretrained("{repo}")',
        f'processor = AutoProcessor.from_pretrained("{repo}")',
        "```",
        "",
        *_training(stages, base),
        *_measured(evaluations),
        *_limits(stages, evaluations),
    ]
    if notes:
        lines += ["## From the folder's own card", "", notes, ""]
    return front_matter(matter) + "\n".join(lines)


def _base(stage: Mapping[str, Any]) -> str | None:
    """What training began with: a Hub id or shipped name as it is, a folder of some machine by its last name."""
    path = stage.get("config", {}).get("model", {}).get("path")
    if not path:
        return None
    text = str(path).rstrip("/")
    is_folder = text.startswith(("/", ".", "~")) or text.count("/") > 1 or "://" in text
    return text.rpartition("/")[2] if is_folder else text


def _training(stages: Sequence[Mapping[str, Any]], base: str | None) -> list[str]:
    if not stages:
        return ["## Training", "", "Not recorded: no run.json of a training run lies beside the weights.", ""]
    lines = ["## Training", ""]
    lines += [
        f"{len(stages)} stage(s), from {f'`{safe(base)}`' if base else 'weights made from scratch'}.",
        "",
    ]
    for number, run in enumerate(stages, start=1):
        config: Mapping[str, Any] = run.get("config", {})
        data = [
            [f"`{part.get('kind')}`", _short(part), part.get("weight")] for part in config.get("data", ())
        ]
        settings = [[key, safe(str(config[key]))] for key in _SETTINGS if config.get(key) is not None]
        versions = ", ".join(f"{key} {value}" for key, value in sorted(run.get("versions", {}).items()))
        lines += [
            f"### Stage {number}",
            "",
            *table(["data", "options", "weight"], data),
            "",
            *table(["setting", "value"], settings),
            "",
            f"Data fingerprint `{run.get('data_fingerprint')}`, {run.get('processes')} process(es) on "
            f"{safe(str(run.get('device')))}. Versions: {versions}.",
            "",
        ]
    return lines


def _short(part: Mapping[str, Any]) -> str:
    """The options of a source, without folders."""
    options = {**part.get("options", {})}
    told = [f"{key} {str(value).rstrip('/').rpartition('/')[2]}" for key, value in sorted(options.items())]
    return safe(", ".join(told))


def _measured(evaluations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return []
    rows = []
    for name, result in evaluations.items():
        flat = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        rows += [[safe(name), safe(key), value] for key, value in flat.items() if not isinstance(value, bool)]
    return ["## Measured", "", *table(["file", "figure", "value"], rows), ""]


def _limits(stages: Sequence[Mapping[str, Any]], evaluations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    limits = [] if evaluations else ["Nothing was measured on this checkpoint: no eval*.json lies beside it."]
    if any("windtunnel" in str(run.get("config", {}).get("data")) for run in stages):
        limits.append("It was trained on drawn scenes and knows nothing of photographs.")
    limits += [
        "It can be wrong about what an image shows, and sounds the same when it is.",
        "It was not tested for harmful or biased answers.",
    ]
    return ["## Known limits", "", *(f"- {limit}" for limit in limits), ""]
