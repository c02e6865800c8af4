"""What makes a reply in free words useless, whatever was asked: one look, one reason, for every stage.

Reply --reply_fault--> None | empty_reply, loop, cut_off, refusal, wrong_language

The language is told by its script, which is exact, costs microseconds and knows nothing of French in an English set.
Chinese and Japanese count as one script, because both write with Chinese characters.
"""

from __future__ import annotations

import re
from typing import Literal

from infinity_mm.engines.base import Reply
from infinity_mm.quality.phrases import is_loop, is_refusal, letters_by_script, main_script

Words = Literal["question", "answer", "option"]
"""What a reply in free words is."""

_QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|「[^」\n]*」|『[^』\n]*』|《[^》\n]*》|`[^`\n]*`')
_MIN_LETTERS: dict[Words, int] = {"question": 4, "answer": 16, "option": 1}
"""Fewer say no language (a Chinese character counts as four): an answer may be a name, or a word read off a sign."""


def reply_fault(reply: Reply, *, script: str | None, words: Words = "answer") -> str | None:
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
    if script is not None and is_in_another(text, script, words):
        return "wrong_language"
    return None


def is_in_another(text: str, script: str, words: Words) -> bool:
    """Whether the text is mostly written in another script, apart from what it quotes.

    Chinese takes over names as they are, so that an answer with any Chinese character is Chinese.
    """
    if script == "LATIN" and text.isascii():
        return False
    own = _QUOTED.sub("", text)
    found = letters_by_script(own)
    if script == "CJK" and words != "question" and found[script]:
        return False
    return found.total() >= _MIN_LETTERS[words] and main_script(own) != script
