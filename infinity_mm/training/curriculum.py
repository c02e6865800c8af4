"""Several runs one after the other, declared in one file.

    common keys + stages: {name: overrides} --resolve--> one SftConfig per stage --train, in order--> out_dir/name/model

A stage is the common keys with its own on top, section by section; it starts from the model of the stage before it and
lives in a folder of its name. What a stage is, is data: the file says which parts learn, how fast, from what, and at
which resolution. A file without `stages` is a curriculum of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infinity_mm.config import build, read_config, to_plain
from infinity_mm.errors import explain
from infinity_mm.training.checkpoint import changes
from infinity_mm.training.config import MAY_CHANGE_ON_RESUME, SftConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One run of a curriculum."""

    name: str
    """Empty where the file has no stages."""
    config: SftConfig

    @property
    def model_dir(self) -> Path:
        """The model it ends with; the folder appears whole, so it says that the stage is finished."""
        return self.config.out_dir / "model"


def load_stages(path: str | Path, overrides: Sequence[str] = ()) -> list[Stage]:
    """Read and check a file, whole: a mistake in the last stage is found before the first.

    An override holds for every stage; `stages.NAME.key=value` for one.
    """
    plain = read_config(path, [o for o in overrides if o.startswith("stages.")])
    common = [o for o in overrides if not o.startswith("stages.")]
    stages = plain.pop("stages", None)
    if stages is None:
        return [Stage(name="", config=build(SftConfig, plain, overrides=common, where=str(path)))]
    if not isinstance(stages, dict) or not all(isinstance(own, dict) for own in stages.values()):
        raise explain(
            what="`stages` must be a section of `name: {key: value}`",
            where=str(path),
            fix="give every stage a name and the keys it changes, {} for none",
        )
    resolved: list[Stage] = []
    for name, own in stages.items():
        where = f"{path}, stage {name}"
        merged = merge(plain, own)
        if resolved:
            merged["model"] = _go_on(merged.get("model"), own.get("model"), resolved[-1].model_dir, where)
        config = build(SftConfig, merged, overrides=common, where=where)
        plain_config = to_plain(config) | {"out_dir": str(config.out_dir / str(name))}
        if resolved:
            plain_config["model"]["path"] = str(resolved[-1].model_dir)
        resolved.append(Stage(name=str(name), config=build(SftConfig, plain_config, where=where)))
    return resolved


def merge(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` on top of `common`: sections are merged key by key, everything else is replaced."""
    merged = dict(common)
    for key, value in own.items():
        before = merged.get(key)
        merged[key] = (
            merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _go_on(common: Any, own: Any, model_dir: Path, where: str) -> dict[str, Any]:
    """The section `model` of a stage that starts from the one before: what goes with a path stays."""
    first_only = ("path", "build", "parts", "vision_tower", "tokenizer")
    named = [key for key in first_only if key in (own or {})]
    if named:
        raise explain(
            what=f"the stage names model.{named[0]}, but it starts from the stage before it",
            where=where,
            fix="remove it, or begin another curriculum with this stage",
        )
    kept = {key: value for key, value in (common or {}).items() if key not in first_only}
    return kept | {"path": str(model_dir)}


def run_stages(
    stages: Sequence[Stage],
    train: Callable[[SftConfig], bool],
    *,
    only: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Train what is not finished, in order; `train` returns whether a stage came to its end. `only`: that one stage.

    The same call after a kill goes on: finished stages are left alone, the one that was interrupted is resumed.
    """
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise explain(
            what=f"there is no stage `{only}`",
            where="--stage",
            fix=f"use one of {', '.join(names)}" if names != [""] else "the file has no `stages`",
        )
    for number, stage in enumerate(stages):
        if only is not None and stage.name != only:
            continue
        if stage.name and stage.model_dir.exists():
            _refuse_other_stage(stage)
            say(f"stage {stage.name}: finished, in {stage.model_dir}")
            continue
        if number and not stages[number - 1].model_dir.exists():
            raise explain(
                what=f"stage {stage.name} starts from stage {stages[number - 1].name}, which is not finished",
                where="--stage",
                fix="run without --stage, or that stage first",
            )
        if stage.name:
            say(f"stage {stage.name} ({number + 1} of {len(stages)})")
        if not train(stage.config):
            break
    if torch.distributed.is_initialized():  # by the first stage, for all
        torch.distributed.destroy_process_group()


def _refuse_other_stage(stage: Stage) -> None:
    """A finished stage is left alone only if it is still the one that the file describes."""
    run = json.loads((stage.config.out_dir / "run.json").read_text(encoding="utf-8"))
    may_change = MAY_CHANGE_ON_RESUME - {"steps", "epochs"}
    changed = changes(run["config"], to_plain(stage.config), may_change)
    if changed:
        raise explain(
            what=f"stage {stage.name} is finished, with another configuration; " + "; ".join(changed),
            where=str(stage.config.out_dir),
            fix="undo the change, choose a new out_dir, or remove this folder and those of the stages after it",
        )
