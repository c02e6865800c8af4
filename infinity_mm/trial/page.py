"""One self-contained page of a trial: what was kept, what was dropped and why, picture by picture.

Picture*, Funnel, unusable files --render--> HTML text

Everything that came from a file name, a picture or a model is escaped; the page loads nothing and runs no script.
"""

from __future__ import annotations

import base64
import difflib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from PIL import Image

from infinity_mm.trial.collect import (
    DROPPED,
    FAILED,
    KEPT,
    REPAIRED,
    AnswerView,
    Funnel,
    Picture,
    QuestionView,
)
from infinity_mm.trial.inputs import Given
from infinity_mm.trial.words import STAGES, in_words
from infinity_mm.vision.images import BadImage, decode_image

_THUMBNAIL_PX = 560
_MANY_PICTURES = 60
"""From here on pictures are shown at half the side, so that the page stays a few megabytes."""
_LONG_CHARS = 420
"""Longer texts are folded."""
_FILES_SHOWN = 40
"""So many unusable files are listed openly; the rest is folded."""
_LABELS = {KEPT: "kept", REPAIRED: "repaired, kept", DROPPED: "dropped", FAILED: "failed"}
_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class PageFacts:
    """What the page says besides the pictures."""

    title: str
    notes: Sequence[str] = ()
    """Sentences that a person must read first: what the teacher is, why the trial stopped early."""
    how: Mapping[str, str]
    """Setting -> value, for the table at the end."""
    keep_at: float
    """Score from which an answer is kept."""
    rewrite_at: float | None
    """Score from which an answer is repaired."""
    next_commands: Sequence[str] = ()
    """What to run next."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture with its bytes and the names of its files."""

    picture: Picture
    data: bytes | None
    """None if the file is gone."""
    paths: Sequence[str]


def render(facts: PageFacts, shown: Sequence[Shown], unusable: Sequence[Given], counts: Funnel) -> str:
    """The page as one HTML text."""
    css = resources.files("infinity_mm.trial").joinpath("page.css").read_text(encoding="utf-8")
    side_px = _THUMBNAIL_PX if len(shown) < _MANY_PICTURES else _THUMBNAIL_PX // 2
    cards = "".join(_card(one, side_px) for one in shown)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{_CSP}">'
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(facts.title)}</title><style>{css}</style></head><body>"
        f"<header><h1>{escape(facts.title)}</h1>{_verdict(counts)}{_notes(facts.notes)}</header><main>"
        f"{_funnel(counts)}{_legend(facts)}<section class=cards>{cards}</section>"
        f"{_files(unusable)}{_reasons(counts)}{_how(facts.how)}{_next(facts.next_commands)}"
        "</main></body></html>\n"
    )


def _verdict(counts: Funnel) -> str:
    kept = f"<b>{counts.kept}</b> of {_number(counts.answers, 'answer')} kept"
    repaired = f", {counts.repaired} of them after a repair" if counts.repaired else ""
    return (
        f"<p class=verdict>{_number(counts.pictures_worked, 'picture')}, "
        f"{_number(counts.answerable, 'question')} with answers, {kept}{repaired}.</p>"
    )


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class=note>{escape(note)}</p>" for note in notes)


def _funnel(counts: Funnel) -> str:
    steps = [
        ("questions planned", counts.planned, "every picture gets different kinds of question"),
        ("written", counts.written, "the teacher found something of this kind to ask"),
        ("different", counts.distinct, "not the same as another question about the picture"),
        ("answerable", counts.answerable, "asked again, the teacher says that the picture answers it"),
    ]
    answers = [
        ("answers written", counts.answers, "in one to three styles for each question"),
        ("kept", counts.kept, "scored high enough, at once or after a repair"),
    ]
    return f"<section class=funnel>{_bars(steps)}{_bars(answers)}</section>"


def _bars(steps: Sequence[tuple[str, int, str]]) -> str:
    largest = max(steps[0][1], 1)
    rows = "".join(
        f"<tr title='{escape(why)}'><th>{escape(name)}</th><td class=n>{number}</td><td class=bar>"
        f"<i style='width:{100 * number / largest:.1f}%'></i></td><td class=why>{escape(why)}</td></tr>"
        for name, number, why in steps
    )
    return f"<table>{rows}</table>"


def _legend(facts: PageFacts) -> str:
    repair = (
        f"; from {facts.rewrite_at:g} it is repaired once and judged again"
        if facts.rewrite_at is not None
        else ""
    )
    boxes = "".join(
        f"<label class={fate}><input type=checkbox id=show-{fate} checked>{_LABELS[fate]}</label>"
        for fate in (KEPT, REPAIRED, DROPPED, FAILED)
    )
    return (
        f"<section class=legend><p>The score is the judge's, 1 to 10. From {facts.keep_at:g} an answer is kept"
        f"{repair}; below it is dropped.</p><p class=boxes>Show {boxes}</p></section>"
    )


def _card(shown: Shown, side_px: int) -> str:
    picture = shown.picture
    names = ", ".join(dict.fromkeys(os.path.basename(path) for path in shown.paths))
    names += f" ({len(shown.paths)} files)" if len(shown.paths) > 1 else ""
    tags = f"<p class=tags>{escape(', '.join(picture.tags))}</p>" if picture.tags else ""
    if picture.end is not None:
        body = f"<p class=ended>{escape(in_words(picture.end.reason))}</p>"
    elif not picture.is_worked:
        body = "<p class=ended>Not worked yet: the trial stopped before it. The same command goes on.</p>"
    else:
        body = "".join(_question(question) for question in picture.questions)
    return (
        f"<article><figure>{_image(shown.data, side_px)}<figcaption title='{escape(os.linesep.join(shown.paths))}'>"
        f"{escape(names)}<small>{picture.image.width} &times; {picture.image.height} px</small></figcaption>{tags}"
        f"</figure><div class=questions>{body}</div></article>"
    )


def _question(question: QuestionView) -> str:
    kind = escape(question.type.rpartition("/")[2].replace("_", " "))
    if question.end is not None:
        fate = FAILED if question.end.is_failure else DROPPED
        said = (
            f"<span class=said>{_folded(escape(question.text), question.text)}</span>"
            if question.text
            else ""
        )
        return (
            f"<div class='question ended {fate}'><p class=q><span class=kind title='{escape(question.type)}'>{kind}"
            f"</span>{said}</p><p class=m><b class='fate {fate}'>{_LABELS[fate]}</b>"
            f" · {escape(in_words(question.end.reason))}{_error(question.end.error)}</p></div>"
        )
    answers = "".join(_answer(answer) for answer in question.answers)
    fates = " ".join(sorted({f"has-{answer.fate}" for answer in question.answers}))
    return (
        f"<div class='question {fates}'><p class=q><span class=kind title='{escape(question.type)}'>{kind}</span>"
        f"{escape(question.text)}</p><ul>{answers}</ul></div>"
    )


def _answer(answer: AnswerView) -> str:
    score = "" if answer.score is None else f"<b class=score>{answer.score:.3g}</b>"
    if answer.score_before is not None and answer.before is not None:
        score = f"<span class=score>{answer.score_before:.3g}</span>" + (f"→ {score}" if score else "")
    reason = ""
    if answer.end is not None:
        reason = f" · {escape(in_words(answer.end.reason))}{_error(answer.end.error)}"
    text = _diff(answer.before, answer.text) if answer.before is not None else escape(answer.text)
    shown = _folded(text, answer.text) if answer.text or answer.before else "<i>no text</i>"
    return (
        f"<li class={answer.fate}><div class=a>{shown}</div><p class=m>{score}<b class='fate {answer.fate}'>"
        f"{_LABELS[answer.fate]}</b> <span class=style>{escape(answer.style)}</span>{reason}</p></li>"
    )


def _folded(html: str, text: str) -> str:
    """Long texts behind their beginning."""
    if len(text) <= _LONG_CHARS:
        return html
    return f"<details><summary>{escape(text[:160])} …</summary>{html}</details>"


def _diff(before: str, after: str) -> str:
    """The new text with what was struck out and put in, word by word."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(escape("".join(new[c:d])))
        else:
            gone, come = escape("".join(old[a:b])), escape("".join(new[c:d]))
            parts += [f"<del>{gone}</del>"] * bool(gone) + [f"<ins>{come}</ins>"] * bool(come)
    return "".join(parts)


def _error(error: str) -> str:
    return f"<span class=error>{escape(error[:400])}</span>" if error else ""


def _image(data: bytes | None, side_px: int) -> str:
    if data is None:
        return "<div class=gone>the file is gone</div>"
    try:
        picture = decode_image(data)
    except BadImage as bad:
        return f"<div class=gone>{escape(in_words(bad.reason))}</div>"
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _files(unusable: Sequence[Given]) -> str:
    if not unusable:
        return ""
    rows = [
        f"<tr><td>{escape(one.path)}</td><td>{escape(in_words(one.problem or ''))}</td>"
        f"<td class=detail>{escape(one.detail[:200])}</td></tr>"
        for one in unusable
    ]
    head = "<thead><tr><th>file</th><th>why it was left out</th><th></th></tr></thead>"
    rest = ""
    if len(rows) > _FILES_SHOWN:
        rest = (
            f"<details><summary>{len(rows) - _FILES_SHOWN} more</summary>"
            f"<table>{head}{''.join(rows[_FILES_SHOWN:])}</table></details>"
        )
    return (
        f"<section class=box><h2>{_number(len(rows), 'file')} left out</h2>"
        f"<div class=scroll><table>{head}{''.join(rows[:_FILES_SHOWN])}</table></div>{rest}</section>"
    )


def _reasons(counts: Funnel) -> str:
    rows = "".join(
        f"<tr><td class=n>{number}</td><td>{escape(STAGES.get(stage, stage))}</td><td>{escape(in_words(reason))}</td>"
        f"<td><b class='fate {fate}'>{_LABELS[fate]}</b></td></tr>"
        for fate, found in ((DROPPED, counts.dropped), (FAILED, counts.failed))
        for stage, reasons in found.items()
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1])
    )
    return (
        f"<section class=box><h2>Why questions and answers ended</h2><table>{rows}</table></section>"
        if rows
        else ""
    )


def _how(how: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in how.items())
    return f"<section class=box><h2>How it was made</h2><table>{rows}</table></section>"


def _next(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    lines = "\n".join(escape(command) for command in commands)
    return f"<section class=box><h2>Next</h2><pre>{lines}</pre></section>"
