from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import jsonschema
from engine_fakes import ask
from nano import Drawn, look

from infinity_mm.engines.base import Engine, Failure, Reply, Request
from infinity_mm.engines.simulate import SimulatedSpec, made_up
from infinity_mm.record import canonical_json

SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 10},
        "kind": {"enum": ["a", "b"]},
        "names": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
        "sure": {"type": "boolean"},
    },
    "required": ["score", "kind", "names", "sure"],
}


def generate(*requests: Request) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        async with SimulatedSpec().open(Drawn()) as engine:
            assert isinstance(engine, Engine)
            return await engine.generate(requests)

    return asyncio.run(run())


def test_a_reply_is_marked_and_depends_on_the_request_alone() -> None:
    a, b = ask("what is it"), ask("what is it", seed=1)
    assert generate(a, b) == list(reversed(generate(b, a)))
    assert made_up(a) != made_up(b)
    replies = [made_up(ask(str(i))) for i in range(200)]
    assert all(reply.simulated for reply in replies if isinstance(reply, Reply))


def test_most_replies_are_questions_and_every_kind_of_bad_one_comes() -> None:
    replies = [made_up(ask(str(i))) for i in range(2000)]
    kinds = Counter(
        answer.reason if isinstance(answer, Failure) else (answer.finish_reason, answer.text.endswith("?"))
        for answer in replies
    )
    assert kinds[("stop", True)] > 1700
    assert set(kinds) == {("stop", True), ("stop", False), ("length", True), "simulated"}


def test_a_choice_is_the_likeliest_of_the_choices() -> None:
    (reply,) = generate(look((), "score it", choices=("1", "2", "3")))
    assert isinstance(reply, Reply)
    assert reply.choice_logprobs is not None
    assert reply.text == ("1", "2", "3")[reply.choice_logprobs.index(max(reply.choice_logprobs))]


def test_a_value_follows_the_schema_but_for_the_bad_ones() -> None:
    num_good = 0
    for seed in range(100):
        reply = made_up(replace(ask("judge it", seed=seed), schema=canonical_json(SCHEMA)))
        assert isinstance(reply, Reply)
        try:
            jsonschema.validate(json.loads(reply.text), SCHEMA)
            num_good += 1
        except json.JSONDecodeError:
            pass
    assert 80 < num_good < 100


def test_an_image_that_cannot_be_read_fails_as_it_would_in_a_real_run() -> None:
    images = Drawn()
    (failure,) = generate(look(images.image(0), "what"))  # of which the engine's own reader knows nothing
    assert isinstance(failure, Failure)
    assert failure.reason == "bad_image"
