"""Model families the trainer knows, found by `model_type` in a checkpoint's config.json."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.families.base import Family
from infinity_mm.families.infinity_mm import INFINITY_MM
from infinity_mm.families.internvl import INTERNVL
from infinity_mm.families.llava_onevision import LLAVA_ONEVISION
from infinity_mm.families.qwen_vl import QWEN2_5_VL, QWEN3_VL
from infinity_mm.families.smolvlm import IDEFICS3, SMOLVLM
from infinity_mm.model.released import is_released

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (INFINITY_MM, QWEN2_5_VL, QWEN3_VL, IDEFICS3, SMOLVLM, LLAVA_ONEVISION, INTERNVL)
}


def family_of(folder: Path, *, convert: bool = False) -> Family:
    """The family of a checkpoint folder; with `convert`, ours for released weights that can become ours."""
    file = folder / "config.json"
    if not file.is_file():
        raise explain(
            what=f"{folder} is not a checkpoint folder: it has no config.json",
            where="model.path",
            fix="give the folder that holds config.json, model.safetensors and the processor",
        )
    model_type = str(json.loads(file.read_text(encoding="utf-8")).get("model_type"))
    if is_released(folder) and (convert or model_type not in FAMILIES):
        return INFINITY_MM
    if convert:
        raise explain(
            what=f"model.convert is given, but a {model_type} cannot become our own model",
            where=str(file),
            fix="remove it: the model is trained as what it is",
        )
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1)
        raise explain(
            what=f"{folder} holds a model of type {model_type!r}, which no family knows"
            + (f"; the nearest is {near[0]}" if near else ""),
            where=str(file),
            fix=f"use one of {', '.join(FAMILIES)}, or add a family as docs/families.md says",
        )
    return FAMILIES[model_type]
