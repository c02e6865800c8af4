"""Photographs for tests: those that installed Python packages bring along; drawn pictures where there are none."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from infinity_mm.windtunnel import world

PLACES = {
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/rocket.jpg",
        "data/hubble_deep_field.jpg",
        "data/motorcycle_left.png",
        "data/page.png",
        "data/coins.png",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
"""Package -> pictures in it (scikit-image 0.25 and later, scikit-learn 1.5 and later)."""


def put_photographs(folder: Path, *, number: int = 10) -> Path:
    """Fill a folder with so many pictures, as many of them photographs as there are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [path for path in _installed() if path.is_file()][:number]
    for path in found:
        shutil.copy(path, folder / path.name)
    for index in range(number - len(found)):
        scene = world.sample_scene(world_seed=77, index=index, split="held_out")
        (folder / f"drawn_{index}.png").write_bytes(world.png_bytes(scene))
    return folder


def _installed() -> list[Path]:
    found = []
    for package, pictures in PLACES.items():
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec is not None else ():
            found += [Path(root) / picture for picture in pictures]
    return found
