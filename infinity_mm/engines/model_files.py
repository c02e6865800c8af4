"""Which model is meant by a name, and what exactly its folder holds."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from infinity_mm.errors import explain
from infinity_mm.record import digest

_MODELS = Path(__file__).parent.parent / "windtunnel" / "models"
SHIPPED = {name: _MODELS / name for name in ("nano-base", "nano-teacher")}
"""Names of the models that come with the package."""

_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Weights, configurations, tokenizer and chat template; never pickles."""


def model_folder(model: str, revision: str | None) -> Path:
    """The local folder of a shipped name, a path, or a Hub id (downloaded if it is not in the cache)."""
    for folder in (SHIPPED.get(model), Path(model).expanduser()):
        if folder is not None and (folder / "config.json").is_file():
            return folder
    if model in SHIPPED or Path(model).expanduser().exists() or model.count("/") != 1 or model[0] in "./~":
        raise explain(
            what=f"there is no model in `{model}`",
            where="engine.model",
            fix=f"give a folder with config.json, a Hub id like org/name, or one of {', '.join(SHIPPED)}",
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, allow_patterns=list(_PATTERNS)))


def model_hash(folder: Path) -> str:
    """Hash of everything in a model folder that decides its replies."""
    files = sorted(file for pattern in _PATTERNS for file in folder.glob(pattern))
    return digest(*(part for file in files for part in (file.name, _file_hash(file, _identity(file)))))


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1024)
def _file_hash(file: Path, identity: tuple[int, int]) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
