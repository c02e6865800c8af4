import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from engine_fakes import said
from nano import Drawn
from scoring_server import ScoringServer, logprob_of

from infinity_mm.engines.base import Failure, Likelihood, Scoring
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.engines.openai_score import read_ids, read_likelihood
from infinity_mm.record import ImageSlot, Text, Turn


def score(
    scorings: Sequence[Scoring], server: ScoringServer, images: Drawn | None = None, **spec: Any
) -> list[Likelihood | Failure]:
    async def run() -> list[Likelihood | Failure]:
        async with server as running:
            settings: dict[str, Any] = {"likelihood": True, "backoff_s": 0.001} | spec
            opened = OpenAISpec(base_url=running.url, model="m", revision="r", **settings)
            async with opened.open(images or Drawn()) as engine:
                assert engine.capabilities.likelihood == settings["likelihood"]
                return await engine.score(scorings)

    return asyncio.run(run())


def mean(text: str) -> float:
    return sum(logprob_of(ord(char)) for char in text) / len(text)


def test_exactly_the_tokens_of_the_last_turn_are_averaged() -> None:
    images, server = Drawn(), ScoringServer()
    picture = images.image(0)
    turns = (
        Turn("system", (Text("be true"),)),
        Turn("user", (ImageSlot(0), Text("what"))),
        Turn("assistant", (Text("a dog"),)),
        Turn("user", (Text("and its color"),)),
        Turn("assistant", (Text("a dog, red"),)),
    )
    [found] = score([Scoring(turns=turns, images=(picture,))], server, images)
    assert isinstance(found, Likelihood)
    assert found.mean_logprob == pytest.approx(mean("a dog, red"))
    marks = 5 * 2 + 4 + 2  # two open every turn, one closes all but the last, one more opens each reply
    assert (found.num_tokens, found.prompt_tokens) == (10, marks + 7 + 3 + 4 + 5 + 13)


def test_the_image_is_sent_once_and_how_a_reply_opens_is_asked_for_once() -> None:
    images, server = Drawn(), ScoringServer()
    turns = [(Turn("user", (ImageSlot(0), Text("what"))), Turn("assistant", (Text(text),))) for text in "abc"]
    score([Scoring(turns=each, images=(images.image(0),)) for each in turns], server, images)
    paths = [path for path, _ in server.bodies]
    assert (paths.count("/tokenize"), paths.count("/v1/chat/completions")) == (2 + 3, 3)
    with_image = [path for path, body in server.bodies if "image_url" in str(body)]
    assert with_image == ["/v1/chat/completions"] * 3
    measured = next(body for path, body in server.bodies if path != "/tokenize")
    assert (measured["prompt_logprobs"], measured["max_tokens"]) == (0, 1)


def test_a_text_that_melts_into_its_opening_is_a_failure_of_its_own() -> None:
    melted, fine = score([said("~red"), said("red")], ScoringServer())
    assert isinstance(melted, Failure)
    assert (melted.reason, melted.retryable) == ("no_span", False)
    assert isinstance(fine, Likelihood)


def test_a_prompt_that_ends_with_something_else_is_never_scored() -> None:
    [failure] = score([said("red")], ScoringServer(trouble="cut"))
    assert isinstance(failure, Failure)
    assert failure.reason == "no_span"


def test_passing_trouble_is_tried_again_at_every_call() -> None:
    [found] = score([said("red")], ScoringServer(trouble="busy"))
    assert isinstance(found, Likelihood)
    assert found.mean_logprob == pytest.approx(mean("red"))


def test_an_engine_that_was_not_told_to_score_asks_nobody() -> None:
    server = ScoringServer()
    [failure] = score([said("red")], server, likelihood=False)
    assert isinstance(failure, Failure)
    assert (failure.reason, server.bodies) == ("no_likelihood", [])


def test_template_settings_reach_both_kinds_of_calls() -> None:
    server, settings = ScoringServer(), {"enable_thinking": False}
    score([said("red")], server, extra_body={"chat_template_kwargs": settings, "top_k": 5})
    assert [body["chat_template_kwargs"] for _, body in server.bodies] == [settings] * 4
    assert [body.get("top_k") for _, body in server.bodies] == [None, None, None, 5]


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "[]",
        "{}",
        '{"prompt_token_ids": [1, 2], "prompt_logprobs": null}',
        '{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"3": {"logprob": -1}}]}',
        '{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"2": {"logprob": NaN}}]}',
    ],
)
def test_an_answer_of_another_shape_is_a_bad_reply(body: str) -> None:
    for failure in (read_likelihood(body, [2]), read_ids(body)):
        assert isinstance(failure, Failure)
        assert (failure.reason, failure.retryable) == ("bad_reply", True)
