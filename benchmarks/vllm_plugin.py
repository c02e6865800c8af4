"""Lets a vLLM server find this tree's model as a plugin without installing the tree."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def python_path(folder: str) -> str:
    """A PYTHONPATH for the server; `folder` gets the metadata that an installed package would have."""
    about = Path(folder, "infinity_mm-0.dist-info")
    about.mkdir(parents=True)
    about.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: infinity-mm\nVersion: 0\n")
    about.joinpath("entry_points.txt").write_text(
        "[vllm.general_plugins]\ninfinity_mm = infinity_mm.serving.plugin:register\n"
    )
    return f"{ROOT}:{folder}"
