"""Untrusted text made fit for a page: visible controls, stated cuts, word differences, a guess at the script.

caption, reply, file name --clean--> no invisible characters --clip--> bounded --json_block--> inert in HTML
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Characters that change how others are shown, or that no file format takes. Marks (U+200E, U+200F) and joiners stay:
Arabic, Hebrew and emoji need them, and every text on the page is isolated from its neighbours."""
_TOKEN = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_SCRIPTS = (
    ("Japanese", re.compile("[\u3040-\u30ff]")),
    ("Korean", re.compile("[\u1100-\u11ff\uac00-\ud7af]")),
    ("Chinese", re.compile("[\u3400-\u9fff\U00020000-\U0003134f]")),
    ("Cyrillic", re.compile("[\u0400-\u052f]")),
    ("Greek", re.compile("[\u0370-\u03ff]")),
    ("Arabic", re.compile("[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff]")),
    ("Hebrew", re.compile("[\u0590-\u05ff]")),
    ("Devanagari", re.compile("[\u0900-\u097f]")),
    ("Bengali", re.compile("[\u0980-\u09ff]")),
    ("Tamil", re.compile("[\u0b80-\u0bff]")),
    ("Thai", re.compile("[\u0e00-\u0e7f]")),
    ("Latin", re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")),
)
_SCRIPT_CHARS = 400
"""Beginning of a text that the guess looks at."""
_MIN_SHARE = 0.1
"""Share of a text's letters from which on a script other than Latin names it: models mix in Latin names."""
_DIFF_TOKENS = 800


def clean(text: str) -> str:
    """Control, override and surrogate characters written out as `⟨U+202E⟩`; tab and newline stay."""
    return _CONTROL.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def clip(text: str, most: int) -> str:
    """The cleaned text, at most `most` characters of it; a cut says how much there was."""
    if len(text) <= most:
        return clean(text)
    return f"{clean(text[:most])} … [{len(text):,} characters, the first {most:,} are shown]"


def word_diff(old: str, new: str) -> list[list[str]]:
    """What changed, as [["=", same], ["-", removed], ["+", added], ...]; joined without "-" it is `new`.

    Words, single marks and single Han, Kana or Hangul characters are compared. Texts of more than 800 of these are
    shown as removed and added whole: comparing takes the product of their lengths.
    """
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    if max(len(a), len(b)) > _DIFF_TOKENS:
        return [["-", old], ["+", new]]
    steps: list[list[str]] = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            steps.append(["=", "".join(a[i:j])])
            continue
        if i < j:
            steps.append(["-", "".join(a[i:j])])
        if k < m:
            steps.append(["+", "".join(b[k:m])])
    return steps


def script_of(text: str) -> str:
    """The script most of the letters belong to, as a light guess at the language: "Latin" may be English or Malay.

    Kana makes a text Japanese even where most of it is Han.
    """
    head = text[:_SCRIPT_CHARS]
    if head.isascii():
        return "Latin" if any(map(str.isalpha, head)) else "no letters"
    counts = {name: len(pattern.findall(head)) for name, pattern in _SCRIPTS}
    total = sum(counts.values())
    if not total:
        return "other" if any(map(str.isalpha, head)) else "no letters"
    if counts["Japanese"] >= _MIN_SHARE * total:
        return "Japanese"
    best = max(counts, key=lambda name: (counts[name] if name != "Latin" else 0, name))
    return best if best != "Latin" and counts[best] >= _MIN_SHARE * total else "Latin"


def json_block(value: Any) -> str:
    """JSON that can stand in a `<script type="application/json">`: nothing in it ends the element or a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
