"""Ids of what is made from an image: readable, and functions of the image's id alone.

3fa9c1… --> 3fa9c1….q2 --> 3fa9c1….q2.short --> 3fa9c1….c0
"""

from __future__ import annotations

import re

_QUESTION = re.compile(r"\.q\d+(?:\.\w+)?$")


def question_id(image_id: str, number: int) -> str:
    """Id of the `number`-th planned question."""
    return f"{image_id}.q{number}"


def answer_id(question_id: str, style: str) -> str:
    """Id of the question with its answer in one style."""
    return f"{question_id}.{style}"


def image_id(id_: str) -> str:
    """Id of the image that a question or pair is about."""
    return _QUESTION.sub("", id_)


def conversation_id(pair_id: str, number: int, edition: str = "") -> str:
    """Id of the `number`-th conversation about the image that the pair is about; `edition` as in `Context`."""
    return f"{image_id(pair_id)}.{edition}c{number}"
