"""Family `document`: signs (large words on a color) and forms (lines such as `Name: Ana`)."""

import random
from typing import Final

from PIL import Image, ImageDraw

from infinity_mm.windtunnel.families.base import (
    Family,
    Layout,
    font,
    num_characters,
    pick_cosmetic,
    pick_font_px,
    pick_size,
    shade,
    text_budget,
    text_width_px,
    type_scale,
    write,
)
from infinity_mm.windtunnel.scene import Box, DocumentFacts, Line, Scene
from infinity_mm.windtunnel.words import (
    CITIES,
    CODE_CHARACTERS,
    COLOR_NAMES,
    COLORS,
    DAYS,
    FIELDS,
    NAMES,
    SIGN_WORDS,
)

_SIGN_SIZES: Final = (
    (64, 64), (96, 64), (64, 96), (80, 80), (96, 96), (128, 64), (64, 128), (128, 128), (128, 96), (192, 80),
    (256, 64), (64, 256),
)  # fmt: skip
_FORM_SIZES: Final = (
    (80, 64), (96, 64), (80, 96), (96, 96), (128, 64), (80, 128), (112, 112), (128, 96), (128, 128), (96, 160),
    (192, 80), (80, 192),
)  # fmt: skip
_BIG: Final = ((192, 144), (192, 192), (256, 192))
_SIGN_FONT_PX: Final = (13, 14, 15, 16, 17, 18, 20, 22)
_INK: Final = (20, 20, 24)
_MARGIN_PX: Final = 3


def sample(rng: random.Random) -> Scene:
    """Signs and forms in equal numbers."""
    return _sample_sign(rng) if rng.random() < 0.5 else _sample_form(rng)


def _sample_sign(rng: random.Random) -> Scene:
    num_lines = rng.choice((1, 2, 3))
    while True:
        width, height = pick_size(rng, _SIGN_SIZES, _BIG)
        words = rng.sample(SIGN_WORDS, num_lines)
        font_px = round(rng.choice(_SIGN_FONT_PX) * type_scale(width, height))
        lines = tuple(Line(label="", value=word) for word in words)
        facts = DocumentFacts(kind="sign", background=rng.choice(COLOR_NAMES), lines=lines)
        if _fits(facts, width, height, font_px):
            cosmetic = pick_cosmetic(rng, font_px)
            return Scene(family="document", width=width, height=height, facts=facts, cosmetic=cosmetic)


def _sample_form(rng: random.Random) -> Scene:
    num_lines = rng.choice((2, 3, 4))
    while True:
        width, height = pick_size(rng, _FORM_SIZES, _BIG)
        fields = rng.sample(FIELDS, num_lines)
        font_px = pick_font_px(rng, width, height)
        lines = tuple(Line(label=field, value=field_value(rng, field)) for field in fields)
        facts = DocumentFacts(kind="form", background="", lines=lines)
        if _fits(facts, width, height, font_px):
            cosmetic = pick_cosmetic(rng, font_px)
            return Scene(family="document", width=width, height=height, facts=facts, cosmetic=cosmetic)


def field_value(rng: random.Random, field: str) -> str:
    """A value that a form may show for this field."""
    if field == "Code":
        code = "".join(rng.choices(CODE_CHARACTERS, k=3))
        return field_value(rng, field) if code == "THE" else code  # which a question would lose as an article
    known = {"Name": NAMES, "City": CITIES, "Day": DAYS}.get(field)
    return rng.choice(known) if known else str(rng.randint(1, 99))


def drawn_texts(facts: DocumentFacts) -> list[str]:
    """Everything that is written on the image with these facts."""
    return [line.text for line in facts.lines]


def _fits(facts: DocumentFacts, width: int, height: int, font_px: int) -> bool:
    texts = drawn_texts(facts)
    wide_enough = all(text_width_px(text, font_px) <= width - 2 * _MARGIN_PX for text in texts)
    high_enough = len(texts) * (font_px + 3) <= height - 2 * _MARGIN_PX
    return wide_enough and high_enough and num_characters(texts) <= text_budget(width, height)


def layout(scene: Scene) -> Layout:
    """`line/i`; lines of a form start at one left edge, words of a sign are centered."""
    assert isinstance(scene.facts, DocumentFacts)
    rng = random.Random(scene.cosmetic.seed)
    font_px = scene.cosmetic.font_px
    texts = drawn_texts(scene.facts)
    room = scene.height - 2 * _MARGIN_PX
    step = min(room / len(texts), font_px * rng.uniform(1.4, 2.2))
    top = _MARGIN_PX + (room - step * len(texts)) * (0.5 if scene.facts.kind == "sign" else rng.random())
    widths = [text_width_px(text, font_px) for text in texts]
    left = _MARGIN_PX + (scene.width - 2 * _MARGIN_PX - max(widths)) * rng.random() * 0.6
    boxes: Layout = {}
    for i, text_width in enumerate(widths):
        x = (scene.width - text_width) / 2 if scene.facts.kind == "sign" else left
        boxes[f"line/{i}"] = Box(x, top + i * step, x + text_width, top + (i + 1) * step)
    return boxes


def draw(scene: Scene, boxes: Layout, image: Image.Image) -> None:
    """White type on dark signs, black type on light ones and on paper."""
    assert isinstance(scene.facts, DocumentFacts)
    rng = random.Random(scene.cosmetic.seed + 1)
    is_sign = scene.facts.kind == "sign"
    paper = (
        shade(rng, COLORS[scene.facts.background])
        if is_sign
        else rng.choice(((255, 255, 255), (248, 246, 238)))
    )
    image.paste(paper, (0, 0, scene.width, scene.height))
    ink = (255, 255, 255) if is_sign and scene.facts.background not in ("yellow", "orange") else _INK
    pen = ImageDraw.Draw(image)
    for i, text in enumerate(drawn_texts(scene.facts)):
        box = boxes[f"line/{i}"]
        if is_sign:
            write(pen, box, text, scene.cosmetic.font_px, ink)
        else:
            middle = round((box.y0 + box.y1) / 2)
            pen.text((round(box.x0), middle), text, font=font(scene.cosmetic.font_px), fill=ink, anchor="lm")


def texts(scene: Scene) -> list[str]:
    """Everything that is written on the image."""
    assert isinstance(scene.facts, DocumentFacts)
    return drawn_texts(scene.facts)


FAMILY: Final = Family(sample=sample, layout=layout, texts=texts, draw=draw)
