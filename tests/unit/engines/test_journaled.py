import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_fakes import Echo, ask, until

from infinity_mm.engines.base import Engine, Failure, Reply, Request
from infinity_mm.engines.journaled import Journaled
from infinity_mm.engines.replay import Replay, ReplaySpec
from infinity_mm.errors import UserError
from infinity_mm.storage.journal import Journal


class NoImages:
    def read(self, image: object) -> bytes:
        raise AssertionError("no image should be read")


def test_a_second_run_asks_nothing_and_gets_the_same_replies(tmp_path: Path) -> None:
    requests = [ask("a"), ask("b"), ask("a", seed=1)]
    echo = Echo()
    first = asyncio.run(Journaled(echo, Journal(str(tmp_path), "w0")).generate(requests))
    again = asyncio.run(Journaled(echo, Journal(str(tmp_path), "w1")).generate(requests))
    assert first == [Reply(text="a!"), Reply(text="b!"), Reply(text="a!")]
    assert again == [Reply(text=f"{t}!", from_journal=True) for t in "aba"]
    assert echo.batches == [["a", "b", "a"]]


def test_it_is_an_engine() -> None:
    assert isinstance(Journaled(Echo(), Journal("memory://unused", "w0")), Engine)


def test_a_reply_keeps_all_its_fields_through_the_journal(tmp_path: Path) -> None:
    full = Reply(
        text="yes",
        finish_reason="length",
        prompt_tokens=7,
        completion_tokens=3,
        choice_logprobs=(-0.1, -2.25),
        reasoning="hm",
        cached_tokens=5,
        simulated=True,
    )

    class Says(Echo):
        async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
            return [full for _ in requests]

    for _ in range(2):
        [reply] = asyncio.run(Journaled(Says(), Journal(str(tmp_path), "w0")).generate([ask("a")]))
        assert isinstance(reply, Reply)
        assert replace(reply, from_journal=False) == full


def test_failures_are_asked_again_by_a_run_and_not_by_a_replay(tmp_path: Path) -> None:
    echo, failure = Echo(), Failure(reason="bad_text", detail="bad")
    for _ in range(2):
        answers = asyncio.run(Journaled(echo, Journal(str(tmp_path), "w0")).generate([ask("bad"), ask("a")]))
        assert answers[0] == failure
    replay = Journaled(echo, Journal(str(tmp_path), "w1"), mode="replay")
    assert asyncio.run(replay.generate([ask("bad")])) == [failure]
    assert echo.batches == [["bad", "a"], ["bad"]]


def test_an_answer_of_no_use_is_paid_for_once(tmp_path: Path) -> None:
    unread = Failure(reason="not_a_choice", detail="ten or so")
    num_calls = 0

    class Says(Echo):
        async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
            nonlocal num_calls
            num_calls += len(requests)
            return [unread]

    for _ in range(2):
        journaled = Journaled(Says(), Journal(str(tmp_path), "w0"))
        assert asyncio.run(journaled.generate([ask("a")])) == [unread]
    assert num_calls == 1


def test_a_replay_gives_the_last_of_several_failures_and_a_reply_before_any_failure(tmp_path: Path) -> None:
    said: list[Reply | Failure] = [
        Failure(reason="timeout", detail="", retryable=True),
        Failure(reason="http_400", detail="too long"),
        Failure(reason="http_400", detail="too long"),
        Reply(text="7"),
    ]

    answers = iter(said)

    class Says(Echo):
        async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
            return [next(answers)]

    replays: list[Reply | Failure] = []
    for _ in said:
        asyncio.run(Journaled(Says(), Journal(str(tmp_path), "w0")).generate([ask("a")]))
        replay = Journaled(Echo(), Journal(str(tmp_path), "w1"), mode="replay")
        replays += asyncio.run(replay.generate([ask("a")]))
    assert replays == [*said[:3], Reply(text="7", from_journal=True)]


def test_a_request_twice_in_one_call_is_asked_once_and_the_second_is_marked(tmp_path: Path) -> None:
    echo = Echo()
    answers = asyncio.run(
        Journaled(echo, Journal(str(tmp_path), "w0")).generate([ask("a"), ask("b"), ask("a")])
    )
    assert echo.batches == [["a", "b"]]
    assert [a.from_journal for a in answers if isinstance(a, Reply)] == [False, False, True]


@pytest.mark.parametrize("independent", [False, True])
def test_a_request_that_is_being_asked_is_not_asked_again(tmp_path: Path, independent: bool) -> None:
    echo = Echo(delay_s=0.02)
    echo.capabilities = replace(Echo.capabilities, independent=independent)

    async def run() -> list[list[Reply | Failure]]:
        engine = Journaled(echo, Journal(str(tmp_path), "w0"))
        return await asyncio.gather(
            *(engine.generate([ask("a"), ask(text)]) for text in ("x", "y", "bad", "bad"))
        )

    answers = asyncio.run(run())
    assert sorted(text for batch in echo.batches for text in batch) == ["a", "bad", "x", "y"]
    assert [a[0] for a in answers] == [Reply(text="a!")] + [Reply(text="a!", from_journal=True)] * 3
    assert answers[2][1] == answers[3][1] == Failure(reason="bad_text", detail="bad")


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("end", ["cancelled", "raised"])
def test_when_the_call_that_asks_is_gone_the_one_that_waits_asks_itself(
    tmp_path: Path, end: str, independent: bool
) -> None:
    gate = asyncio.Event()
    echo = Echo(gate=gate)
    echo.capabilities = replace(Echo.capabilities, independent=independent)

    async def run() -> list[Reply | Failure]:
        engine = Journaled(echo, Journal(str(tmp_path), "w0"))
        first = asyncio.create_task(engine.generate([ask("a"), ask("raise" if end == "raised" else "b")]))
        await until(lambda: len(echo.batches) == 1 + independent)
        second = asyncio.create_task(engine.generate([ask("a")]))
        await asyncio.sleep(0)
        gate.set()
        if end == "cancelled":
            first.cancel()
        with pytest.raises(RuntimeError if end == "raised" else asyncio.CancelledError):
            await first
        return await second

    assert [reply.text for reply in asyncio.run(run()) if isinstance(reply, Reply)] == ["a!"]


def test_a_reply_is_on_disk_before_it_is_returned(tmp_path: Path) -> None:
    async def run() -> None:
        engine = Journaled(Echo(), Journal(str(tmp_path), "w0"))

        async def one(text: str) -> None:
            await engine.generate([ask(text)])
            assert Journal(str(tmp_path), "other").get(ask(text).key("echo")) is not None

        await asyncio.gather(*(one(f"q{i}") for i in range(20)))

    asyncio.run(run())


def test_in_replay_mode_a_missing_line_is_an_error_that_names_the_request(tmp_path: Path) -> None:
    echo = Echo()
    asyncio.run(Journaled(echo, Journal(str(tmp_path), "w0")).generate([ask("a")]))
    replay = Journaled(echo, Journal(str(tmp_path), "w1"), mode="replay")
    assert asyncio.run(replay.generate([ask("a")])) == [Reply(text="a!", from_journal=True)]
    with pytest.raises(UserError, match=r"What colour.*seed 5"):
        asyncio.run(replay.generate([ask("What colour is it?", seed=5)]))
    assert echo.batches == [["a"]]


def test_the_replay_engine_answers_under_the_recorded_fingerprint_and_needs_no_image(tmp_path: Path) -> None:
    asyncio.run(Journaled(Echo(), Journal(str(tmp_path), "w0")).generate([ask("a")]))

    async def run(fingerprint: str) -> list[Reply | Failure]:
        spec = ReplaySpec(journal=str(tmp_path), fingerprint=fingerprint)
        async with spec.open(NoImages()) as engine:
            assert isinstance(engine, Engine)
            assert engine.fingerprint == fingerprint
            return await engine.generate([ask("a")])

    assert asyncio.run(run("echo")) == [Reply(text="a!", from_journal=True)]
    with pytest.raises(UserError, match="the journal has no reply"):
        asyncio.run(run("another"))


def test_replaying_into_an_empty_journal_gives_a_journal_with_the_same_values(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    requests = [ask("a"), ask("b")]
    asyncio.run(Journaled(Echo(), Journal(old, "w0")).generate(requests))
    replay = Replay(Journal(old, "w1"), fingerprint="echo", capabilities=Echo.capabilities)
    asyncio.run(Journaled(replay, Journal(new, "w0")).generate(requests))
    for request in requests:
        key = request.key("echo")
        assert Journal(new, "w1").get(key) == Journal(old, "w1").get(key)


def test_a_reply_of_an_independent_engine_is_on_disk_while_its_neighbour_is_still_written(
    tmp_path: Path,
) -> None:
    gate = asyncio.Event()

    class Slow(Echo):
        capabilities = replace(Echo.capabilities, independent=True)

        async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
            if requests[0].turns[-1].text == "slow":
                await gate.wait()
            return await super().generate(requests)

    echo = Slow()

    async def run() -> list[Reply | Failure]:
        engine = Journaled(echo, Journal(str(tmp_path), "w0"))
        both = asyncio.create_task(engine.generate([ask("slow"), ask("quick")]))
        await until(lambda: Journal(str(tmp_path), "other").get(ask("quick").key("echo")) is not None)
        assert not both.done()
        gate.set()
        return await both

    assert asyncio.run(run()) == [Reply(text="slow!"), Reply(text="quick!")]
    assert echo.batches == [["quick"], ["slow"]]
