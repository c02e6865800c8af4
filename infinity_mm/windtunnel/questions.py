"""Questions about a scene: all that it can answer, balanced, and some that it cannot.

Scene -> questions(rng) -> Question (text, accepted answers, boxes of the evidence)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from infinity_mm.errors import explain
from infinity_mm.windtunnel.kinds import KINDS
from infinity_mm.windtunnel.scene import Box, Scene
from infinity_mm.windtunnel.wording import Query, parse, render
from infinity_mm.windtunnel.words import FAMILIES
from infinity_mm.windtunnel.world import boxes_px, sample_scene

__all__ = ["NOT_UNDERSTOOD", "TYPES", "Query", "Question", "bad_questions", "parse", "questions", "types_for"]

TYPES: Final[tuple[str, ...]] = tuple(KINDS)
"""Every three-level instruction type of the drawn world."""
NOT_UNDERSTOOD: Final = "none/none/not_understood"
"""The type of a question that nobody can understand."""
_POOL_SCENES: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one scene."""

    type: str
    """Instruction type."""
    text: str
    """The question in words."""
    answers: tuple[str, ...]
    """Accepted answers, the canonical one first; empty for a bad question."""
    boxes: tuple[Box, ...]
    """Where to look, as shares of width and height; empty means the whole image."""
    family: str
    """Family of the image it is asked about."""


def types_for(scene: Scene) -> tuple[str, ...]:
    """The types of questions that this scene can answer."""
    rng = random.Random(0)
    return tuple(type for type in _family_types(scene.family) if _answerable(scene, type, rng))


def questions(
    scene: Scene, rng: random.Random, *, type: str | None = None, n: int | None = None
) -> list[Question]:
    """Distinct answerable questions in random order, of one type or of all; `n` at most.

    Types take turns, so that a short list is not all about the type with the most questions. Within a type, answers
    that are always at hand (no, one) are thinned out.
    """
    if type is not None and type not in KINDS:
        raise explain(
            what=f"there is no instruction type {type!r} in the drawn world",
            where="windtunnel.questions.questions(type=...)",
            fix=f"use one of windtunnel.questions.TYPES, for example {TYPES[0]!r}",
        )
    types = list(_family_types(scene.family)) if type is None else [type]
    rng.shuffle(types)
    queues = [_answerable(scene, each, rng) for each in types if scene.family in KINDS[each].families]
    for queue in queues:
        rng.shuffle(queue)
    turns = [queue[k] for k in range(max(map(len, queues), default=0)) for queue in queues if k < len(queue)]
    layout = boxes_px(scene)
    found: list[Question] = []
    for query in turns[:n]:
        finding = KINDS[query.type].find(scene.facts, query.args)
        assert finding is not None, "only answerable queries are in the queues"
        found.append(
            Question(
                type=query.type,
                text=render(query.type, query.args, rng),
                answers=finding.answers,
                boxes=tuple(_normalised(layout[key], scene) for key in finding.evidence),
                family=scene.family,
            )
        )
    return found


def bad_questions(scene: Scene, rng: random.Random, n: int) -> list[Question]:
    """Questions without an answer here: about what is absent, about another kind of image, or garbled."""
    makers = (_absent, _foreign, _garbled)
    start = rng.randrange(len(makers))
    return [makers[(start + i) % len(makers)](scene, rng) for i in range(n)]


def is_answerable(scene: Scene, query: Query) -> bool:
    """Whether the scene has an answer to the query."""
    kind = KINDS[query.type]
    return scene.family in kind.families and kind.find(scene.facts, query.args) is not None


@cache
def _family_types(family: str) -> tuple[str, ...]:
    return tuple(kind.type for kind in KINDS.values() if family in kind.families)


def _answerable(scene: Scene, type: str, rng: random.Random) -> list[Query]:
    kind = KINDS[type]
    queries = [Query(type=type, args=args) for args in kind.ask(scene.facts, rng)]
    return [query for query in queries if kind.find(scene.facts, query.args) is not None]


def _normalised(box: Box, scene: Scene) -> Box:
    width, height = scene.width, scene.height
    x0, x1 = (min(1.0, max(0.0, round(x / width, 4))) for x in (box.x0, box.x1))
    y0, y1 = (min(1.0, max(0.0, round(y / height, 4))) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)


@cache
def pool(family: str) -> Sequence[Question]:
    """Questions about other scenes of a family; always the same ones, of the training world."""
    scenes = [sample_scene(world_seed=0, index=i, split="train", family=family) for i in range(_POOL_SCENES)]
    return [question for i, scene in enumerate(scenes) for question in questions(scene, random.Random(i))]


@cache
def pool_of_type(family: str, type: str) -> Sequence[Question]:
    """The questions of one type in `pool(family)`."""
    return [question for question in pool(family) if question.type == type]


def _bad(scene: Scene, type: str, text: str) -> Question:
    return Question(type=type, text=text, answers=(), boxes=(), family=scene.family)


def _draw_unanswerable(scene: Scene, rng: random.Random, families: Sequence[str]) -> Question:
    """A question about another scene that this one cannot answer, each type as often as the others."""
    types = [(family, type) for family in families for type in _family_types(family)]
    while True:
        family, type = rng.choice(types)
        for question in rng.sample(pool_of_type(family, type), min(4, len(pool_of_type(family, type)))):
            query = parse(question.text)
            assert query is not None, "our own questions are understood"
            if not is_answerable(scene, query):
                return _bad(scene, query.type, question.text)


def _absent(scene: Scene, rng: random.Random) -> Question:
    return _draw_unanswerable(scene, rng, [scene.family])


def _foreign(scene: Scene, rng: random.Random) -> Question:
    return _draw_unanswerable(scene, rng, [family for family in FAMILIES if family != scene.family])


def _garbled(scene: Scene, rng: random.Random) -> Question:
    """A question that would have an answer here, broken: words lost, shuffled, doubled or replaced."""
    while True:
        words = rng.choice(questions(scene, rng, n=4)).text.split()
        i = rng.randrange(len(words))
        match rng.randrange(5):
            case 0:
                words = words[: max(1, len(words) - rng.randint(1, 3))]
            case 1:
                words = rng.sample(words, len(words))
            case 2:
                words = words[:i] + words[i + 1 :]
            case 3:
                words = [*words[: i + 1], *words[i:]]
            case _:
                words[i] = rng.choice(("it", "and", "why", "banana", "who", "under", "very", "them"))
        text = " ".join(words)
        if parse(text) is None:
            return _bad(scene, NOT_UNDERSTOOD, text)
