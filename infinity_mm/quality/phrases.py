"""Tell-tale texts in a model's reply: refusals, talk about the task, and loops."""

from __future__ import annotations

import re

_REFUSAL = re.compile(
    r"^\W*(?:i(?:['\u2019]?m| am) (?:sorry|unable|not able|afraid)\b|sorry\b[,.]? (?:but )?i\b"
    r"|as an? (?:ai|language model)\b"
    r"|i (?:can ?not|can['\u2019]?t|could not|couldn['\u2019]?t|will not|won['\u2019]?t|do not|don['\u2019]?t) "
    r"(?:see|view|help|assist|answer|provide|determine|tell|access|comply|identify|generate|create|ask|have|know)\b"
    r"|抱歉|对不起|很抱歉|我无法|我不能|作为一个(?:ai|人工智能))",
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
    words = text.split()
    if any(_ends_periodic(words, period, 8 if period < 3 else 4) for period in range(1, _MAX_PERIOD + 1)):
        return True
    return any(_ends_periodic(list(text[-400:]), period, 16 if period < 3 else 8) for period in range(1, 25))


def _ends_periodic(items: list[str], period: int, repeats: int) -> bool:
    length = period * repeats
    return len(items) >= length and items[-length:-period] == items[-length + period :]
