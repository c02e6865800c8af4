"""Ids of what is made from an image: readable, and functions of the image's id alone.

3fa9c1… --> 3fa9c1….q2 --> 3fa9c1….q2.short --> 3fa9c1….c0        what came with the image: 3fa9c1….source
"""

from __future__ import annotations

import re

from infinity_mm.record import Sample

_SOURCE = ".source"
_QUESTION = re.compile(r"\.q\d+(?:\.\w+)?$")


def question_id(image_id: str, number: int) -> str:
    """Id of the `number`-th planned question."""
    return f"{image_id}.q{number}"


def answer_id(question_id: str, style: str) -> str:
    """Id of the question with its answer in one style."""
    return f"{question_id}.{style}"


def image_id(id_: str) -> str:
    """Id of the image that a question, a pair, or what came with the image is about."""
    return _QUESTION.sub("", id_.removesuffix(_SOURCE))


def conversation_id(part_id: str, number: int, edition: str = "") -> str:
    """Id of the `number`-th conversation about the image of its first part; `edition` as in `Context`."""
    return f"{image_id(part_id)}.{edition}c{number}"


def source_id(image_id: str) -> str:
    """Id of the conversation that came with the image."""
    return f"{image_id}{_SOURCE}"


def is_source(sample_id: str) -> bool:
    """Whether it is the id of a conversation that came with its image."""
    return sample_id.endswith(_SOURCE)


def num_source_turns(conversation: Sample) -> int:
    """How many of its turns came with the image: the first ones; each pair after them is two turns."""
    num_pairs = sum(not is_source(parent) for parent in conversation.parents)
    return len(conversation.turns) - 2 * num_pairs
