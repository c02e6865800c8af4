import asyncio
import time

import pytest
from engine_fakes import Echo, ask, until
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_mm.engines.base import Engine, Failure, Reply
from infinity_mm.engines.batching import MicroBatched


def test_concurrent_calls_are_answered_in_one_batch() -> None:
    echo = Echo()

    async def run() -> list[list[Reply | Failure]]:
        async with MicroBatched(echo, max_batch=8, max_wait_s=0.05) as engine:
            assert isinstance(engine, Engine)
            return await asyncio.gather(*(engine.generate([ask(f"{c}1"), ask(f"{c}2")]) for c in "abc"))

    answers = asyncio.run(run())
    assert answers == [[Reply(text=f"{c}1!"), Reply(text=f"{c}2!")] for c in "abc"]
    assert [sorted(batch) for batch in echo.batches] == [["a1", "a2", "b1", "b2", "c1", "c2"]]


def test_a_full_batch_does_not_wait_for_company() -> None:
    async def run() -> float:
        async with MicroBatched(Echo(), max_batch=2, max_wait_s=30.0) as engine:
            start = time.monotonic()
            await engine.generate([ask("a"), ask("b")])
            return time.monotonic() - start

    assert asyncio.run(run()) < 5


def test_a_lone_request_is_answered_after_the_wait() -> None:
    async def run() -> list[Reply | Failure]:
        async with MicroBatched(Echo(), max_batch=64, max_wait_s=0.01) as engine:
            return await engine.generate([ask("a")])

    assert asyncio.run(run()) == [Reply(text="a!")]


def test_a_call_of_a_thousand_does_not_hold_up_a_call_of_one() -> None:
    gate = asyncio.Event()
    echo = Echo(gate=gate)

    async def run() -> None:
        async with MicroBatched(echo, max_batch=16, max_wait_s=0.0) as engine:
            large = asyncio.create_task(engine.generate([ask(f"large{i}") for i in range(1000)]))
            await until(lambda: len(echo.batches) == 1)
            small = asyncio.create_task(engine.generate([ask("small")]))
            await asyncio.sleep(0)
            gate.set()
            await small
            assert not large.done()
            assert len(await large) == 1000

    asyncio.run(run())
    assert "small" in echo.batches[1]


def test_leaving_the_block_answers_what_waits_and_refuses_new_calls() -> None:
    async def run() -> list[Reply | Failure]:
        engine = MicroBatched(Echo(delay_s=0.01), max_batch=4, max_wait_s=60.0)
        async with engine:
            call = asyncio.create_task(engine.generate([ask(f"{i}") for i in range(10)]))
            await asyncio.sleep(0)
        answers = await call
        with pytest.raises(RuntimeError, match="outside"):
            await engine.generate([ask("late")])
        return answers

    assert asyncio.run(run()) == [Reply(text=f"{i}!") for i in range(10)]


def test_a_raised_error_reaches_its_batch_and_later_batches_go_on() -> None:
    async def run() -> None:
        async with MicroBatched(Echo(), max_batch=4, max_wait_s=0.0) as engine:
            with pytest.raises(RuntimeError, match="out of memory"):
                await engine.generate([ask("raise")])
            assert await engine.generate([ask("a")]) == [Reply(text="a!")]

    asyncio.run(run())


def test_a_cancelled_call_leaves_the_queue() -> None:
    gate = asyncio.Event()
    echo = Echo(gate=gate)

    async def run() -> None:
        async with MicroBatched(echo, max_batch=2, max_wait_s=0.0) as engine:
            busy = asyncio.create_task(engine.generate([ask("a"), ask("b")]))
            await until(lambda: len(echo.batches) == 1)
            given_up = asyncio.create_task(engine.generate([ask("x"), ask("y")]))
            await asyncio.sleep(0)
            given_up.cancel()
            gate.set()
            await busy
            await engine.generate([ask("c")])

    asyncio.run(run())
    assert echo.batches == [["a", "b"], ["c"]]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=12), max_batch=st.integers(1, 11))
def test_every_request_is_asked_once_and_every_call_keeps_its_order(sizes: list[int], max_batch: int) -> None:
    echo = Echo()

    async def run() -> list[list[Reply | Failure]]:
        async with MicroBatched(echo, max_batch=max_batch, max_wait_s=0.0) as engine:
            calls = (engine.generate([ask(f"{c}.{i}") for i in range(size)]) for c, size in enumerate(sizes))
            return await asyncio.gather(*calls)

    answers = asyncio.run(run())
    assert answers == [[Reply(text=f"{c}.{i}!") for i in range(size)] for c, size in enumerate(sizes)]
    assert sum(len(batch) for batch in echo.batches) == sum(sizes)
    assert all(len(batch) <= max_batch for batch in echo.batches)
