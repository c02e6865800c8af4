import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from engine_fakes import ask
from misbehaving_server import Server, completion
from nano import Drawn, look

from infinity_mm.engines.allowance import with_allowance
from infinity_mm.engines.base import Engine, Failure, Likelihood, Reply, Request, Scoring
from infinity_mm.engines.openai import OpenAISpec
from infinity_mm.errors import UserError


def generate(
    requests: Sequence[Request], *, server: Server | None = None, images: Drawn | None = None, **spec: Any
) -> list[Reply | Failure]:
    """Ask a misbehaving server."""

    async def run() -> list[Reply | Failure]:
        async with server or Server() as running:
            settings: dict[str, Any] = {
                "model": "m",
                "revision": "r",
                "backoff_s": 0.001,
                "timeout_s": 20.0,
            } | spec
            async with OpenAISpec(base_url=running.url, **settings).open(images or Drawn()) as engine:
                assert isinstance(engine, Engine)
                return await engine.generate(requests)

    return asyncio.run(run())


def test_replies_come_in_the_order_of_the_requests_with_their_token_counts() -> None:
    answers = generate([ask(f"q{i}") for i in range(20)])
    assert answers == [Reply(text=f"you said q{i}", prompt_tokens=11, completion_tokens=3) for i in range(20)]


@pytest.mark.parametrize("trouble", ["once 429", "once 500", "once 503", "once 408", "drop 2", "half 1"])
def test_passing_trouble_is_tried_again(trouble: str) -> None:
    server = Server()
    assert generate([ask(trouble)], server=server) == [
        Reply(text=f"you said {trouble}", prompt_tokens=11, completion_tokens=3)
    ]
    assert server.calls[trouble] == (3 if trouble == "drop 2" else 2)


@pytest.mark.parametrize(
    ("order", "reason", "retryable"),
    [
        ("always 500", "http_500", True),
        ("always 429", "http_429", True),
        ("always 400", "http_400", False),
        ("always 404", "http_404", False),
        ("garbage", "bad_reply", True),
        ("shape", "bad_reply", True),
        ("body [1]", "bad_reply", True),
        ("body " + json.dumps(completion("")), "empty_reply", True),
        (
            "body " + json.dumps(completion(None, finish_reason="length", reasoning="hmm")),
            "empty_reply",
            False,
        ),
        ("body " + json.dumps(completion("x", finish_reason="content_filter")), "content_filter", False),
        ("body " + json.dumps(completion("a cir", finish_reason="abort")), "aborted", True),
    ],
)
def test_lasting_trouble_is_a_failure_with_its_reason_and_others_go_on(
    order: str, reason: str, retryable: bool
) -> None:
    server = Server()
    failure, reply = generate([ask(order), ask("fine")], server=server, max_retries=2)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert isinstance(reply, Reply)
    assert server.calls[order] == (3 if retryable else 1)


def test_a_hanging_server_is_a_timeout_and_others_go_on() -> None:
    start = time.monotonic()
    failure, reply = generate([ask("hang"), ask("fine")], timeout_s=0.3, max_retries=1)
    assert isinstance(failure, Failure)
    assert failure.reason == "timeout"
    assert isinstance(reply, Reply)
    assert time.monotonic() - start < 10


def test_no_server_at_all_is_a_connection_failure() -> None:
    async def run() -> list[Reply | Failure]:
        spec = OpenAISpec(
            base_url="http://127.0.0.1:1/v1", model="m", revision="r", max_retries=1, backoff_s=0.001
        )
        async with spec.open(Drawn()) as engine:
            return await engine.generate([ask("a")])

    [failure] = asyncio.run(run())
    assert isinstance(failure, Failure)
    assert failure.reason == "connection"


def test_retry_after_is_followed_up_to_the_longest_wait() -> None:
    start = time.monotonic()
    generate([ask("retry-after 1")])
    assert time.monotonic() - start >= 1
    start = time.monotonic()
    generate([ask("retry-after 3600"), ask("retry-after Wed, 21 Oct 2065 07:28:00 GMT")], max_backoff_s=0.1)
    assert time.monotonic() - start < 5


def test_sixty_four_calls_are_in_flight_and_no_more_than_allowed() -> None:
    requests = [ask(f"q{i}") for i in range(200)]
    wide, narrow = Server(delay_s=0.2), Server(delay_s=0.001)
    generate(requests, server=wide, max_in_flight=64)
    assert 32 < wide.most_in_flight <= 64
    generate(requests, server=narrow, max_in_flight=3)
    assert narrow.most_in_flight == 3


def test_the_image_comes_first_as_the_original_bytes() -> None:
    server, images = Server(), Drawn()
    image = images.image(0)
    generate([look(image, "what")], server=server, images=images)
    original = base64.b64encode(images.data[image.sha256]).decode()
    assert server.bodies[0]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{original}"}},
        {"type": "text", "text": "what"},
    ]


def test_seed_temperature_and_length_are_sent_and_draws_differ() -> None:
    server = Server()
    requests = [look((), "a", seed=5, draw=draw, temperature=0.7, max_new_tokens=9) for draw in (0, 1)]
    generate(requests, server=server, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    first, second = server.bodies
    assert first["model"] == "m"
    assert (first["temperature"], first["max_tokens"]) == (0.7, 9)
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert first["seed"] != second["seed"]
    assert 0 <= first["seed"] < 2**31


def test_a_bad_image_fails_alone_and_is_never_sent() -> None:
    server, images = Server(), Drawn()
    broken = images.add(images.data[images.image(0).sha256][:60])
    answers = generate([look(broken, "what"), look(images.image(1), "what")], server=server, images=images)
    assert isinstance(answers[0], Failure)
    assert answers[0].reason == "bad_image"
    assert isinstance(answers[1], Reply)
    assert len(server.bodies) == 1


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    server = Server()
    [failure] = generate([ask("always 401")], server=server, api_key_env="TEST_KEY")
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert isinstance(failure, Failure)
    assert failure.reason == "http_401"
    assert "sk-secret" not in failure.detail
    assert "[key]" in failure.detail


def test_a_key_that_is_not_set_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(UserError, match="TEST_KEY"):
        generate([ask("a")], api_key_env="TEST_KEY")


def test_choices_are_forced_where_the_server_can_and_read_from_the_text_elsewhere() -> None:
    server = Server()
    order = "body " + json.dumps(completion("Yes."))
    request = look((), order, choices=("yes", "no"))
    [reply] = generate([request], server=server, choice_field="structured_outputs")
    assert isinstance(reply, Reply)
    assert (reply.text, reply.choice_logprobs) == ("yes", None)
    assert server.bodies[0]["structured_outputs"] == {"choice": ["yes", "no"]}
    generate([request], server=server)
    assert "structured_outputs" not in server.bodies[1]
    [failure] = generate([look((), "body " + json.dumps(completion("maybe")), choices=("yes", "no"))])
    assert isinstance(failure, Failure)
    assert failure.reason == "not_a_choice"


def test_an_image_always_goes_to_the_same_replica() -> None:
    async def run() -> list[Server]:
        images = Drawn()
        async with Server() as a, Server() as b:
            spec = OpenAISpec(base_url=a.url, replicas=(b.url,), model="m", revision="r")
            async with spec.open(images) as engine:
                await engine.generate(
                    [look(images.image(i), f"{i} {call}") for i in range(8) for call in "xyz"]
                )
            return [a, b]

    seen = [{order.split()[0] for order in server.calls} for server in asyncio.run(run())]
    assert seen[0] | seen[1] == {str(i) for i in range(8)}
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]


def test_the_fingerprint_names_the_weights_and_not_the_address() -> None:
    def fingerprint(**spec: Any) -> str:
        async def run() -> str:
            settings: dict[str, Any] = {"base_url": "http://a/v1", "model": "m", "revision": "r"} | spec
            async with OpenAISpec(**settings).open(Drawn()) as engine:
                return engine.fingerprint

        return asyncio.run(run())

    assert fingerprint() == fingerprint(base_url="http://b/v1", timeout_s=1.0)
    assert len({fingerprint(), fingerprint(revision="s"), fingerprint(image_max_px=448)}) == 3


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="localhost:8000/v1"):
        OpenAISpec(base_url="localhost:8000/v1", model="m", revision="r")


def test_a_body_of_megabytes_is_sent_without_a_warning() -> None:
    (reply,) = generate([ask("y" * 3_000_000)])
    assert isinstance(reply, Reply)
    assert len(reply.text) > 3_000_000


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        (
            "response_format",
            {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": {"type": "object"}, "strict": True},
            },
        ),
        ("structured_outputs", {"json": {"type": "object"}}),
        ("guided_json", {"type": "object"}),
    ],
)
def test_a_schema_is_sent_in_the_field_that_the_server_has_for_it(field: str, sent: dict[str, Any]) -> None:
    server = Server()
    request = replace(ask("judge"), schema='{"type":"object"}')
    generate([request], server=server, schema_field=field)
    generate([request], server=server)
    with_field, without = server.bodies
    assert with_field[field] == sent
    assert field not in without


def test_without_a_revision_the_weights_are_recorded_as_unpinned_and_a_person_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fingerprint() -> str:
        async with OpenAISpec(base_url="http://a/v1", model="some/model-of-this-test").open(
            Drawn()
        ) as engine:
            return engine.fingerprint

    found = {asyncio.run(fingerprint()) for _ in range(2)}
    assert [name.split(", ")[0] for name in found] == ["openai: some/model-of-this-test@unpinned"]
    assert [record.getMessage().split(" has ")[0] for record in caplog.records] == ["some/model-of-this-test"]


def test_while_a_replica_is_dead_its_images_are_answered_by_the_other() -> None:
    async def run() -> tuple[list[Reply | Failure], Server]:
        images = Drawn()
        async with Server() as dead:
            url = dead.url
        async with Server() as alive:
            spec = OpenAISpec(
                base_url=url, replicas=(alive.url,), model="m", revision="r", backoff_s=0.001, max_retries=8
            )
            async with spec.open(images) as engine:
                asked = [look(images.image(i), f"{i} {call}") for i in range(8) for call in "xyz"]
                return await engine.generate(asked), alive

    answers, alive = asyncio.run(run())
    assert [isinstance(answer, Reply) for answer in answers] == [True] * 24
    assert alive.calls.total() == 24


def test_a_replica_that_answers_badly_twice_is_left_for_the_next() -> None:
    async def run() -> tuple[list[Reply | Failure], Server]:
        images = Drawn()
        async with Server(is_sick=True) as sick, Server() as well:
            spec = OpenAISpec(
                base_url=sick.url, replicas=(well.url,), model="m", revision="r", backoff_s=0.001
            )
            async with spec.open(images) as engine:
                return await engine.generate([look(images.image(i), str(i)) for i in range(8)]), sick

    answers, sick = asyncio.run(run())
    assert [isinstance(answer, Reply) for answer in answers] == [True] * 8
    assert set(sick.calls.values()) == {2}


def beside_others(order: str, *, server: Server, max_retries: int = 5) -> list[Reply | Failure]:
    """Ask about one picture what the order says, while others are asked and answered; then about it once more."""

    async def run() -> list[Reply | Failure]:
        images = Drawn()
        async with server as running:
            spec = OpenAISpec(
                base_url=running.url, model="m", revision="r", backoff_s=0.05, max_retries=max_retries
            )
            async with spec.open(images) as engine:
                asked = asyncio.create_task(engine.generate([look(images.image(0), order)]))
                number = 0
                while not asked.done():
                    number += 1
                    (other,) = await engine.generate([look(images.image(1), f"fine {number}")])
                    assert isinstance(other, Reply)
                return [*await asked, *await engine.generate([look(images.image(0), "again")])]

    return asyncio.run(run())


def test_a_picture_that_kills_the_server_whenever_it_is_sent_is_sent_three_times_and_never_again() -> None:
    server = Server()
    answers = beside_others("kill 99", server=server)
    assert [(a.reason, a.retryable) for a in answers if isinstance(a, Failure)] == [
        ("killed_engine", False)
    ] * 2
    assert (server.calls["kill 99"], server.calls["again"]) == (3, 0)


def test_a_picture_that_was_lost_twice_with_the_server_and_is_then_answered_is_no_killer() -> None:
    server = Server()
    answers = beside_others("kill 2", server=server)
    assert [isinstance(answer, Reply) for answer in answers] == [True, True]
    assert (server.calls["kill 2"], server.calls["again"]) == (3, 1)


def test_a_suspect_is_not_sent_to_a_server_that_is_not_there() -> None:
    server = Server(lists_models=False)
    answers = beside_others("kill 2", server=server, max_retries=3)
    assert [a.reason for a in answers if isinstance(a, Failure)] == ["connection"] * 2
    assert (server.calls["kill 2"], server.calls["again"]) == (2, 0)


@pytest.mark.parametrize("trouble", ["drop 99", "half 99"])
def test_a_picture_whose_calls_are_lost_while_the_server_stays_is_no_killer(trouble: str) -> None:
    server = Server()
    failure, reply = beside_others(trouble, server=server, max_retries=3)
    assert isinstance(failure, Failure)
    assert (failure.reason, server.calls[trouble]) == ("connection", 4)
    assert isinstance(reply, Reply)


def test_a_server_that_drops_every_call_condemns_no_picture() -> None:
    server = Server()
    (failure,) = generate([ask("drop 99")], server=server, max_retries=3)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.retryable, server.calls["drop 99"]) == ("connection", True, 4)


def test_what_has_brought_servers_down_is_never_sent() -> None:
    images, server = Drawn(), Server()
    narrow = images.image(0, (402, 2))
    answers = generate(
        [
            look(narrow, "what"),
            look(images.image(1), "is this <|image_pad|>?"),
            ask("what is <image>?"),
            replace(look(images.image(1), "what"), images=(images.image(1), images.image(2))),
        ],
        server=server,
        images=images,
    )
    reasons = [answer.reason for answer in answers if isinstance(answer, Failure)]
    assert reasons == ["bad_image", "special_token", "special_token", "bad_request"]
    assert server.bodies == []


def test_with_no_server_left_calls_wait_and_then_say_so() -> None:
    async def run() -> list[Reply | Failure]:
        async with Server() as dead:
            url = dead.url
        spec = OpenAISpec(
            base_url=url, model="m", revision="r", backoff_s=0.001, max_retries=99, max_down_s=0.01
        )
        async with spec.open(Drawn()) as engine:
            return await engine.generate([ask(str(i)) for i in range(8)])

    answers = asyncio.run(run())
    assert {(a.reason, a.retryable) for a in answers if isinstance(a, Failure)} == {("endpoint_down", True)}
    assert len(answers) == 8


def test_an_image_that_several_calls_want_at_once_is_read_once() -> None:
    images = Drawn()
    image = images.image(0)
    generate([look(image, str(i)) for i in range(12)], images=images)
    assert images.num_reads == 1


class Counting:
    """An allowance of so many requests."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.settled: list[str] = []

    async def reserve(self, requests: Sequence[Request | Scoring]) -> int:
        self.left -= 1
        return int(self.left >= 0)

    def settle(self, request: Request | Scoring, answer: Reply | Likelihood | Failure) -> None:
        self.settled.append(answer.reason if isinstance(answer, Failure) else getattr(answer, "text", ""))


@pytest.mark.parametrize(
    ("number", "said", "settled"),
    [
        (3, "you said drop 2", ["connection", "connection", "you said drop 2"]),
        (2, "out_of_budget", ["connection", "connection"]),
        (0, "out_of_budget", []),
    ],
)
def test_every_attempt_asks_for_leave_so_that_retries_count(
    number: int, said: str, settled: list[str]
) -> None:
    async def run() -> list[Reply | Failure]:
        async with Server() as server:
            spec = OpenAISpec(base_url=server.url, model="m", revision="r", backoff_s=0.001)
            async with spec.open(Drawn()) as engine:
                assert with_allowance(engine, allowance) is engine
                answers = await engine.generate([ask("drop 2")])
                assert server.calls["drop 2"] == len(settled)
                return answers

    allowance = Counting(number)
    [answer] = asyncio.run(run())
    assert (answer.text if isinstance(answer, Reply) else answer.reason) == said
    assert allowance.settled == settled
