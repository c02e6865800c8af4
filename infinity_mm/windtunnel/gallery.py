"""One self-contained HTML page to look at the drawn world: pictures, questions, right and wrong answers."""

import base64
import random
from html import escape
from pathlib import Path
from typing import Final

from infinity_mm.windtunnel import answers, captions
from infinity_mm.windtunnel.families.base import num_characters
from infinity_mm.windtunnel.questions import TYPES, Question, bad_questions, questions
from infinity_mm.windtunnel.scene import Scene
from infinity_mm.windtunnel.tags import tags
from infinity_mm.windtunnel.words import FAMILIES
from infinity_mm.windtunnel.world import drawn_texts, png_bytes, sample_scene, text_budget

_NUM_QUESTIONS: Final = 5
_NUM_BAD: Final = 3
_ZOOM: Final = 3
_CSS: Final = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #66717f; --paper: #f6f5f1; --card: #fff; --line: #dedbd2;
  --right: #1c7c43; --wrong: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #98a3b0; --paper: #14171b; --card: #1d2227;
  --line: #333a42; --right: #6fcf97; --wrong: #f08a80; } }
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 1100px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { margin: 2.5rem 0 .75rem; text-transform: capitalize; }
p.lead, .meta { color: var(--soft); } .meta { font-size: .85rem; }
article { display: grid; grid-template-columns: minmax(200px, auto) 1fr; gap: 1.25rem; margin-bottom: 1rem;
  padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure { margin: 0; max-width: 400px; } figure img { image-rendering: pixelated; max-width: 100%; height: auto;
  border: 1px solid var(--line); border-radius: 4px; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; } td { padding: .3rem .5rem .3rem 0;
  vertical-align: top; border-top: 1px solid var(--line); } td:first-child { width: 34%; }
.right { color: var(--right); } .wrong { color: var(--wrong); } code { font-size: .8rem; color: var(--soft); }
@media (max-width: 720px) { article { grid-template-columns: 1fr; } }
"""


def write_gallery(path: Path, *, world_seed: int, num_per_family: int) -> None:
    """Write the page: the first training scenes of each family, drawn and asked about."""
    sections = []
    for family in FAMILIES:
        scenes = [
            sample_scene(world_seed=world_seed, index=index, split="train", family=family)
            for index in range(num_per_family)
        ]
        cards = "\n".join(_card(scene, random.Random(index)) for index, scene in enumerate(scenes))
        sections.append(f"<section><h2>{escape(family)}</h2>\n{cards}</section>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The wind tunnel</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head><body><h1>The wind tunnel</h1>"
        f'<p class="lead">A drawn world whose truth is known: {len(FAMILIES)} families of images, '
        f"{len(TYPES)} types of questions. World seed {world_seed}.</p>\n"
        + "\n".join(sections)
        + "</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _card(scene: Scene, rng: random.Random) -> str:
    rows = [_row(scene, question, rng) for question in questions(scene, rng, n=_NUM_QUESTIONS)]
    rows += [_bad_row(question) for question in bad_questions(scene, rng, _NUM_BAD)]
    return (
        f"<article>{_figure(scene)}<div>"
        f"<p>{escape(captions.dense(scene, rng))}<br><span class='meta'>{escape(captions.short(scene, rng))}</span></p>"
        f"<table>{''.join(rows)}</table></div></article>"
    )


def _figure(scene: Scene) -> str:
    source = base64.b64encode(png_bytes(scene)).decode()
    used, budget = num_characters(drawn_texts(scene)), text_budget(scene.width, scene.height)
    return (
        f'<figure><img width="{scene.width * _ZOOM}" height="{scene.height * _ZOOM}" alt="{escape(scene.family)}" '
        f'src="data:image/png;base64,{source}"><figcaption class="meta">{scene.width} x {scene.height} px, '
        f"{used} of {budget} characters<br>{escape(', '.join(tags(scene)))}</figcaption></figure>"
    )


def _row(scene: Scene, question: Question, rng: random.Random) -> str:
    replies = [("right", "right", answers.answer(scene, question, "detailed", rng))]
    for level in answers.LEVELS:
        wrong = answers.wrong_answer(scene, question, "brief", level, rng)
        replies.append(("wrong", level, wrong or "none can be made"))
    cells = "<br>".join(
        f'<span class="{kind}">{escape(text)}</span> <code>{escape(label)}</code>'
        for kind, label, text in replies
    )
    return (
        f"<tr><td>{escape(question.text)}<br><code>{escape(question.type)}</code></td><td>{cells}</td></tr>"
    )


def _bad_row(question: Question) -> str:
    asked = f"{escape(question.text)}<br><code>{escape(question.type)}</code>"
    return f'<tr><td>{asked}</td><td class="meta">no answer</td></tr>'
