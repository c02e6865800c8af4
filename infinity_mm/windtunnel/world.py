"""The drawn world: scenes by number, and their pictures.

    (world_seed, index, split) -> sample_scene -> Scene -> render -> image

Everything is a pure function of its arguments: the same scene on every worker and in every order.
"""

import hashlib
import io
import random
from typing import Literal

from PIL import Image

from infinity_mm.errors import explain
from infinity_mm.windtunnel.families import FAMILY_BY_NAME
from infinity_mm.windtunnel.families.base import Layout, text_budget
from infinity_mm.windtunnel.scene import Scene
from infinity_mm.windtunnel.words import FAMILIES

__all__ = ["Split", "boxes_px", "drawn_texts", "png_bytes", "render", "sample_scene", "text_budget"]

Split = Literal["train", "held_out"]


def sample_scene(*, world_seed: int, index: int, split: Split, family: str | None = None) -> Scene:
    """Scene number `index` of one split; without `family` the families take turns.

    Scenes are drawn until the hash of their content lies on the side of the split, so that the splits share no
    content however many scenes are drawn.
    """
    name = FAMILIES[index % len(FAMILIES)] if family is None else family
    if name not in FAMILY_BY_NAME:
        raise explain(
            what=f"there is no family of images named {name!r}",
            where="windtunnel.world.sample_scene(family=...)",
            fix=f"use one of {', '.join(FAMILIES)}",
        )
    seed = hashlib.sha256(f"{world_seed}/{split}/{name}/{index}".encode()).digest()
    rng = random.Random(seed)
    while True:
        scene = FAMILY_BY_NAME[name].sample(rng)
        if scene.is_held_out() == (split == "held_out"):
            return scene


def boxes_px(scene: Scene) -> Layout:
    """Where each element of the scene is drawn, in pixels."""
    return FAMILY_BY_NAME[scene.family].layout(scene)


def drawn_texts(scene: Scene) -> list[str]:
    """Everything that is written on the image; within `text_budget` of its size."""
    return [text for text in FAMILY_BY_NAME[scene.family].texts(scene) if text]


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, in RGB."""
    image = Image.new("RGB", (scene.width, scene.height))
    FAMILY_BY_NAME[scene.family].draw(scene, boxes_px(scene), image)
    return image


def png_bytes(scene: Scene) -> bytes:
    """The picture as a PNG file; the same bytes for the same scene and Pillow version."""
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG")
    return buffer.getvalue()
