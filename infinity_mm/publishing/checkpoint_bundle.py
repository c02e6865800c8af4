"""A checkpoint folder as a model repository: what loads it, a card from what lies beside it, nothing else.

model/*.safetensors, config, processor --+--> files
run.json, eval*.json beside it          --+--model_card--> README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from infinity_mm.errors import explain
from infinity_mm.publishing.bundle import CARD, MANIFEST, Bundle, disk_file, made_file, make_bundle
from infinity_mm.publishing.model_card import model_card

_ENDINGS = {".safetensors", ".json", ".jinja", ".txt", ".model"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_NOT_OURS = {CARD, MANIFEST, "run.json"}


def checkpoint_bundle(folder: Path, *, repo: str) -> Bundle:
    """The files of a Hugging Face model folder. `left_out` says what was not taken, and why.

    The text of an existing README.md comes last in the card. Raises `UserError` for a folder without safetensors.
    """
    taken, left_out = _sorted_out(folder)
    if "config.json" not in taken or not any(name.endswith(".safetensors") for name in taken):
        raise explain(
            what=f"{folder} holds no model: it needs config.json and *.safetensors",
            where="infinity-mm publish",
            fix="give the folder that training wrote (`<out_dir>/model` or `<out_dir>/checkpoint-N`)",
        )
    licence, notes = _old_card(folder / CARD)
    card = model_card(
        repo=repo,
        config=_json(folder / "config.json"),
        stages=_stages(folder),
        evaluations=_evaluations(folder),
        licence=licence,
        notes=notes,
    )
    found = [disk_file(name, folder / name) for name in taken]
    return make_bundle("model", [*found, made_file(CARD, card.encode())], left_out=left_out)


def _sorted_out(folder: Path) -> tuple[list[str], dict[str, str]]:
    taken: list[str] = []
    left_out: dict[str, str] = {}
    # Code belongs to a model whose configuration points to it: `infinity-mm export --with-code` wrote both.
    carries_code = (folder / "config.json").is_file() and "auto_map" in _json(folder / "config.json")
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            continue
        if path.is_symlink():
            left_out[name] = "a link"
        elif any(part.startswith(".") for part in Path(name).parts):
            left_out[name] = "hidden"
        elif "/" in name:
            left_out[name] = "in a folder of its own: optimiser and trainer state are not part of a model"
        elif name in _NOT_OURS:
            left_out[name] = "goes into the card" if name != MANIFEST else "is written anew"
        elif path.suffix in _PICKLES:
            left_out[name] = "a pickle, which can run code where it is loaded"
        elif path.suffix in _ENDINGS or (path.suffix == ".py" and carries_code):
            taken.append(name)
        else:
            left_out[name] = f"files with the ending `{path.suffix}` are not part of a model"
    return taken, left_out


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """`eval*.json` in the folder or beside it, as `infinity-mm eval --json` prints them; by file name."""
    found = [*folder.parent.glob("eval*.json"), *folder.glob("eval*.json")]
    read = {path.name: _json(path) for path in sorted(found)}
    return {name: body for name, body in read.items() if isinstance(body, dict)}


def _stages(folder: Path) -> list[dict[str, Any]]:
    """run.json of the training that wrote the folder, and of those before it as far as they are on this machine."""
    stages: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while (place := folder.resolve()) not in seen:
        seen.add(place)
        run = next((p for p in (place / "run.json", place.parent / "run.json") if p.is_file()), None)
        if run is None:
            break
        stages.insert(0, _json(run))
        start = stages[0].get("config", {}).get("model", {}).get("path")
        if not start:
            break
        folder = Path(start)
    return stages


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _old_card(path: Path) -> tuple[str | None, str]:
    """Licence in the front matter, if any, and the text below it."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, body = "", text
    if text.startswith("---\n") and (end := text.find("\n---", 3)) >= 0:
        head, body = text[4:end], text[end + 4 :]
    matter = yaml.safe_load(head)
    licence = matter.get("license") if isinstance(matter, dict) else None
    return (licence if isinstance(licence, str) else None), body.strip()
