"""What makes a reply in free words useless, whatever was asked: one look, one reason, for every stage.

Reply --reply_fault--> None | empty_reply, loop, cut_off, refusal, wrong_language

The language is told by its script, which is exact, costs microseconds and knows nothing of French in an English set.
Chinese and Japanese count as one script, because both write with Chinese characters.
"""

from __future__ import annotations

import re

from infinity_mm.engines.base import Reply
from infinity_mm.quality.phrases import is_loop, is_refusal, main_script

_QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|「[^」\n]*」|『[^』\n]*』|《[^》\n]*》|`[^`\n]*`')
_MIN_LETTERS = 16
"""Fewer say no language: a name, a word read off a sign."""


def reply_fault(reply: Reply, *, script: str | None) -> str | None:
    """Why nobody should read this reply; None if somebody may. A loop is a loop even where the budget ended it.

    `script`: the one it should mostly be written in, apart from what it quotes; None takes any.
    """
    text = reply.text.strip()
    if not text:
        return "empty_reply"
    if is_loop(text):
        return "loop"
    if reply.finish_reason == "length":
        return "cut_off"
    if is_refusal(text):
        return "refusal"
    if script is not None and _is_in_another(text, script):
        return "wrong_language"
    return None


def _is_in_another(text: str, script: str) -> bool:
    if script == "LATIN" and text.isascii():
        return False
    own = _QUOTED.sub("", text)
    return sum(char.isalpha() for char in own) >= _MIN_LETTERS and main_script(own) != script
