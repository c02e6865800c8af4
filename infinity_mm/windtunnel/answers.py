"""Answers in three lengths, right ones and labelled wrong ones.

A wrong answer is written from a forged scene, on which it is right: all its sentences agree with each other.
"""

import random
from functools import cache
from typing import Final, Literal

from infinity_mm.errors import explain
from infinity_mm.windtunnel.kinds import KINDS
from infinity_mm.windtunnel.kinds.base import Args, Finding
from infinity_mm.windtunnel.questions import Question, is_answerable, pool_of_type
from infinity_mm.windtunnel.scene import Scene
from infinity_mm.windtunnel.truth import final_answer
from infinity_mm.windtunnel.wording import Query, parse

Style = Literal["short", "brief", "detailed"]
Level = Literal["random", "one_fact"]

STYLES: Final[tuple[Style, ...]] = ("short", "brief", "detailed")
LEVELS: Final[tuple[Level, ...]] = ("random", "one_fact")
_TEMPTING: Final = 4
"""A mistake by one fact is drawn from so many of the most tempting ones."""


def answer(scene: Scene, question: Question, style: Style, rng: random.Random) -> str:
    """The right answer; the same one for every `rng`, which is there for wordings to come."""
    query = _understood(scene, question)
    finding = KINDS[query.type].find(scene.facts, query.args)
    assert finding is not None, "_understood refuses unanswerable questions"
    return _write(finding, style)


def wrong_answer(
    scene: Scene, question: Question, style: Style, level: Level, rng: random.Random
) -> str | None:
    """A wrong answer, or None where none can be made (an image may hold too little to be mistaken about).

    `random`: the answer to a question of the same type about another scene. `one_fact`: the answer is off by one
    fact: another object's attribute, a neighboring place, a number or a character misread, yes for no.
    """
    query = _understood(scene, question)
    kind = KINDS[query.type]
    right = kind.find(scene.facts, query.args)
    assert right is not None, "_understood refuses unanswerable questions"
    accepted = {final_answer(each) for each in right.answers}
    for candidate in _candidates(scene, query, level, rng):
        if final_answer(candidate) in accepted:
            continue
        forged = kind.forge(scene.facts, query.args, candidate)
        finding = None if forged is None else kind.find(forged, query.args)
        if finding is not None and final_answer(finding.answers[0]) == final_answer(candidate):
            return _write(finding, style)
    return None


def _candidates(scene: Scene, query: Query, level: Level, rng: random.Random) -> list[str]:
    """Wrong and right answers to try, best first."""
    if level == "random":
        others = rng.sample(_elsewhere(query.type), len(_elsewhere(query.type)))
        # The same question about another scene first: a number for a name would give itself away.
        return [other for _, other in sorted(others, key=lambda pair: pair[0] != query.args)]
    near = list(dict.fromkeys(KINDS[query.type].near(scene.facts, query.args)))
    tempting, rest = near[:_TEMPTING], near[_TEMPTING:]
    return [*rng.sample(tempting, len(tempting)), *rest]


@cache
def _elsewhere(type: str) -> tuple[tuple[Args, str], ...]:
    """What questions of this type are about on other scenes, and their answers."""
    others = [each for family in KINDS[type].families for each in pool_of_type(family, type)]
    queries = [parse(each.text) for each in others]
    return tuple((query.args, each.answers[0]) for query, each in zip(queries, others, strict=True) if query)


def _understood(scene: Scene, question: Question) -> Query:
    query = parse(question.text)
    if query is None or not is_answerable(scene, query):
        raise explain(
            what=f"the question {question.text!r} has no answer on this scene",
            where="windtunnel.answers",
            fix="ask truth.ask(scene, text) first, and answer only what it accepts",
        )
    return query


def _write(finding: Finding, style: Style) -> str:
    final = finding.answers[0]
    if style == "short":
        return final
    if style == "brief":
        return f"{finding.concludes} Answer: {final}"
    return f"{finding.says} {finding.concludes} Answer: {final}"
