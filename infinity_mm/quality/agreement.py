"""Whether two answers to one question say the same: short ones by their words, long ones by what they conclude."""

from __future__ import annotations

import re

from infinity_mm.dedup.text import meaning, normalise

_MARK = re.compile(r"(?<!\w)(?:answer|答案)\s*[:\uff1a]", re.IGNORECASE)


def agrees(short: str, answer: str) -> bool:
    """Whether an answer of any length says what a word or phrase says.

    The last `Answer:` of a text is followed by what it concludes. A conclusion agrees if it has the same words that
    carry meaning, or has them together and in order within a sentence; yes and no count only as its first word.
    """
    said, concluded = _conclusion(short), _conclusion(answer)
    left, right = meaning(said), meaning(concluded)
    if not left or not right:
        return bool(said) and said == concluded
    if left in (("yes",), ("no",)):
        return right[0] == left[0]
    return any(right[i : i + len(left)] == left for i in range(len(right) - len(left) + 1))


def _conclusion(text: str) -> str:
    return normalise(_MARK.split(text)[-1])
