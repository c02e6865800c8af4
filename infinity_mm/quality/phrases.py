"""Tell-tale texts in a model's reply: refusals, talk about the task, loops, and the script they are in."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_REFUSAL = re.compile(
    r"^\W*(?:i(?:['\u2019]?m| am) (?:sorry|unable|not able|afraid)\b|sorry\b[,.]? (?:but )?i\b"
    r"|as an? (?:ai|language model)\b"
    r"|i (?:can ?not|can['\u2019]?t|could not|couldn['\u2019]?t|will not|won['\u2019]?t|do not|don['\u2019]?t) "
    r"(?:see|view|help|assist|answer|provide|determine|tell|access|comply|identify|generate|create|ask|have|know)\b"
    r"|(?:很|非常|十分)?抱歉|对不起|不好意思|我(?:无法|不能|没有办法|看不到|看不见)"
    r"|无法(?:看到|查看|识别|回答|提供|确定|判断)|作为(?:一个|一名)?(?:ai|人工智能|语言模型|大模型))",
    re.IGNORECASE,
)
_META = re.compile(
    r"\b(?:corrected|revised|rewritten|improved|updated|original|previous|given|provided) "
    r"(?:answer|response|version|text)\b"
    r"|\bhere(?: is|['\u2019]s) (?:the|a|my) (?:corrected|revised|rewritten|improved|updated|new)\b"
    r"|\bno (?:changes?|corrections?) (?:(?:is|are|was|were) )?(?:needed|necessary|required|made)\b"
    r"|\b(?:answer|response) is (?:already )?(?:right|correct|accurate|wrong|incorrect)\b"
    r"|修改后的|更正后的|修正后的",
    re.IGNORECASE,
)
_MAX_PERIOD = 24
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})


def is_refusal(text: str) -> bool:
    """Whether the reply opens by declining to do the task."""
    return _REFUSAL.match(text) is not None


def talks_about_the_task(text: str) -> bool:
    """Whether the reply speaks of the answer it was asked to write instead of being it."""
    return _META.search(text) is not None


def is_loop(text: str) -> bool:
    """Whether the text ends in one and the same run of words (or characters) again and again.

    A degenerate model repeats until its budget is spent, so the end is where to look. A list may well say
    "10, 10, 10, 10": single words need more repeats than longer runs to count.
    """
    return _loops(text.split(), repeats=4) or _loops(list(text[-400:]), repeats=8)


def main_script(text: str) -> str | None:
    """The script most letters are of (LATIN, CJK, ...): a cheap stand-in for the language; None without letters."""
    if text.isascii():
        return "LATIN" if any(char.isalpha() for char in text) else None
    scripts = letters_by_script(text)
    return min(scripts, key=lambda script: (-scripts[script], script)) if scripts else None


def letters_by_script(text: str) -> Counter[str]:
    """How many letters are of each script; one of full width (Chinese, kana, Hangul) says as much as four."""
    found: Counter[str] = Counter()
    for char in text:
        if char.isalpha():
            name = unicodedata.name(char, "?").split(" ")[0]
            script = "CJK" if name in _EAST_ASIAN else name
            found[script] += 4 if unicodedata.east_asian_width(char) == "W" else 1
    return found


def _loops(items: list[str], *, repeats: int) -> bool:
    """Whether the items end in `repeats` equal runs; runs of one or two must be there twice as often."""
    periods = range(1, min(_MAX_PERIOD, len(items) // repeats) + 1)
    return any(_ends_periodic(items, period, 2 * repeats if period < 3 else repeats) for period in periods)


def _ends_periodic(items: list[str], period: int, repeats: int) -> bool:
    length = period * repeats
    return len(items) >= length and items[-length:-period] == items[-length + period :]
