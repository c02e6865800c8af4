"""Time is the event loop's, and here it jumps: nothing waits, and every moment is exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from infinity_mm.engines.base import Failure, Reply
from infinity_mm.engines.endpoints import LOST_TO_OPEN, AdaptiveLimit, Breaker, Endpoints, Place

T = TypeVar("T")
SAID = Reply(text="yes")
LOST = Failure(reason="connection", detail="", retryable=True)
BUSY = Failure(reason="http_429", detail="", retryable=True)


class _Jump(selectors.DefaultSelector):
    """Where the loop would wait, its clock goes on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def endpoints(*urls: str, max_in_flight: int = 8) -> Endpoints:
    return Endpoints(
        urls or ("a",), max_in_flight=max_in_flight, slow_s=10.0, max_open_s=60.0, max_down_s=100.0
    )


async def placed(servers: Endpoints, affinity: str = "x") -> Place:
    place = await servers.place(affinity)
    assert place is not None
    return place


async def call(servers: Endpoints, answer: Reply | Failure | None, affinity: str = "x") -> str:
    """One call that takes no time; returns the server it went to."""
    place = await placed(servers, affinity)
    servers.give_back(place, answer)
    return place.endpoint.url


async def lose(servers: Endpoints, affinity: str = "x") -> str:
    return [await call(servers, LOST, affinity) for _ in range(LOST_TO_OPEN)][-1]


def test_trouble_halves_the_limit_once_per_round_and_replies_raise_it_again() -> None:
    limit = AdaptiveLimit(64, slow_s=10.0)
    for _ in range(20):
        limit.overloaded(sent_at=0.0, now=1.0)
    assert limit.value == 32
    limit.overloaded(sent_at=1.5, now=2.0)
    assert limit.value == 16
    for _ in range(16):
        limit.answered(sent_at=2.0, now=3.0)
    assert limit.value == 19  # a sixteenth of 64 in a round of 16
    for _ in range(2000):
        limit.answered(sent_at=3.0, now=4.0)
    assert limit.value == 64


def test_a_reply_that_waited_long_takes_a_few_places_and_the_last_one_stays() -> None:
    limit = AdaptiveLimit(10, slow_s=10.0)
    limit.answered(sent_at=0.0, now=11.0)
    assert limit.value == 8
    for number in range(1, 99):
        limit.overloaded(sent_at=11.0 + number, now=11.5 + number)
    assert limit.value == 1


def test_a_breaker_opens_after_losses_in_a_row_and_its_wait_doubles_with_each_probe_that_fails() -> None:
    breaker = Breaker(max_open_s=3.0)
    for _ in range(LOST_TO_OPEN - 1):
        breaker.lost(0.0, is_probe=False)
    breaker.answered()
    for _ in range(LOST_TO_OPEN):
        assert breaker.allows(0.0)
        breaker.lost(0.0, is_probe=False)
    waits = []
    at = 0.0
    for _ in range(3):
        assert breaker.due_at is not None
        waits.append(breaker.due_at - at)
        at = breaker.due_at
        assert not breaker.allows(at - 0.1)
        assert breaker.allows(at)
        breaker.probe()
        assert not breaker.allows(at + 99)
        breaker.lost(at, is_probe=True)
    assert waits == [1.0, 2.0, 3.0]
    breaker.answered()
    assert breaker.allows(at)


def test_calls_beyond_the_limit_wait_in_order_and_get_the_places_that_come_free() -> None:
    async def main() -> list[str]:
        servers, order = endpoints(max_in_flight=2), []

        async def one(name: str) -> None:
            place = await placed(servers)
            order.append(name)
            await asyncio.sleep(1.0)
            servers.give_back(place, SAID)

        await asyncio.gather(*(one(name) for name in "abcde"))
        assert now() == 3.0
        return order

    assert run(main()) == list("abcde")


def test_a_call_that_gives_up_waiting_loses_no_place() -> None:
    async def main() -> None:
        servers = endpoints(max_in_flight=1)
        first = await placed(servers)
        waiting = [asyncio.create_task(placed(servers)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        servers.give_back(first, SAID)  # the second in line has its place now
        waiting[1].cancel()
        await call(servers, SAID) if waiting[2].done() else servers.give_back(await waiting[2], SAID)
        assert await call(servers, SAID) == "a"

    run(main())


def test_an_image_keeps_its_server_and_images_are_spread() -> None:
    async def main() -> None:
        servers = endpoints("a", "b", "c")
        went = {str(i): await call(servers, SAID, str(i)) for i in range(60)}
        assert went == {str(i): await call(servers, SAID, str(i)) for i in range(60)}
        assert all(10 < list(went.values()).count(url) < 30 for url in "abc")
        fewer = endpoints("a", "b")
        for i, url in went.items():
            assert await call(fewer, SAID, i) == url or url == "c"

    run(main())


def test_images_of_a_server_that_is_down_go_to_the_next_and_come_back() -> None:
    async def main() -> None:
        servers = endpoints("a", "b")
        dead = await lose(servers)
        assert await call(servers, SAID) != dead
        await asyncio.sleep(1.0)
        probe = await placed(servers)
        assert (probe.endpoint.url, probe.is_probe) == (dead, True)
        assert await call(servers, SAID) != dead  # one probe at a time
        servers.give_back(probe, SAID)
        assert await call(servers, SAID) == dead

    run(main())


def test_those_that_wait_for_a_server_go_elsewhere_when_it_goes_down() -> None:
    async def main() -> None:
        servers = endpoints("a", "b", max_in_flight=LOST_TO_OPEN)
        dying = [await placed(servers) for _ in range(LOST_TO_OPEN)]
        home = dying[0].endpoint.url
        waiting = [asyncio.create_task(placed(servers)) for _ in range(8)]
        await asyncio.sleep(0)
        for place in dying:
            servers.give_back(place, LOST)
        # Four losses each handed their place on, before anybody could know; the fifth sent the rest elsewhere.
        went = await asyncio.gather(*waiting)
        assert [place.endpoint.url == home for place in went] == [True] * 4 + [False] * 4

    run(main())


def test_with_all_servers_down_calls_wait_for_a_probe_to_bring_one_back() -> None:
    async def main() -> None:
        servers = endpoints("a")
        await lose(servers)
        waiting = [asyncio.create_task(placed(servers)) for _ in range(3)]
        await asyncio.sleep(1.5)
        assert [task.done() for task in waiting] == [True, False, False]
        servers.give_back(waiting[0].result(), SAID)
        await asyncio.gather(*waiting)
        assert now() == 1.5

    run(main())


def test_after_a_long_time_down_calls_fail_and_the_one_that_is_due_still_probes() -> None:
    async def main() -> None:
        servers = endpoints("a")
        await lose(servers)

        async def until_told() -> float:
            while (place := await servers.place("x")) is not None:
                servers.give_back(place, LOST)
            return now()

        assert await asyncio.gather(*(until_told() for _ in range(3))) == [100.0] * 3
        assert await servers.place("x") is None
        await asyncio.sleep(60.0)
        assert await call(servers, SAID) == "a"
        assert await call(servers, SAID) == "a"

    run(main())


def test_a_server_that_is_away_for_a_minute_is_back_within_a_quarter_of_one() -> None:
    async def main() -> None:
        servers = Endpoints(["a"], max_in_flight=8, slow_s=150.0, max_down_s=900.0)
        await lose(servers)
        probes = []
        while now() < 60.5:
            place = await placed(servers)
            probes.append(now())
            servers.give_back(place, LOST if now() < 60.5 else SAID)
        assert probes == [1.0, 3.0, 7.0, 15.0, 30.0, 45.0, 60.0, 75.0]
        assert (await placed(servers)).is_probe is False

    run(main())


@pytest.mark.parametrize(("brought", "is_given"), [(SAID, True), (LOST, False)])
def test_nobody_gives_up_while_a_slow_server_is_being_probed(
    brought: Reply | Failure, is_given: bool
) -> None:
    async def main() -> None:
        servers = endpoints("a")
        await lose(servers)
        probe = await placed(servers)
        waiting = asyncio.create_task(servers.place("x"))
        await asyncio.sleep(300.0)
        assert not waiting.done()
        servers.give_back(probe, brought)
        assert (await waiting is not None, now()) == (is_given, 301.0)

    run(main())


def test_a_call_that_must_be_alone_waits_until_it_is_and_keeps_the_others_away() -> None:
    async def main() -> list[str]:
        servers, order = endpoints(), []

        async def one(name: str, *, alone: bool = False) -> None:
            place = await servers.place("x", alone=alone)
            assert place is not None
            assert place.is_alone is alone
            order.append(f"{name}{now():.0f}")
            await asyncio.sleep(1.0)
            servers.give_back(place, SAID)

        await asyncio.gather(one("a"), one("b"), one("c", alone=True), one("d"), one("e"))
        return order

    assert run(main()) == ["a0", "b0", "c1", "d2", "e2"]


def test_one_that_gives_up_waiting_to_be_alone_holds_nobody_back() -> None:
    async def main() -> None:
        servers = endpoints()
        await placed(servers)
        lonely = asyncio.create_task(servers.place("x", alone=True))
        await asyncio.sleep(0)
        behind = asyncio.create_task(placed(servers))
        await asyncio.sleep(0)
        assert not behind.done()
        lonely.cancel()
        await behind

    run(main())


def test_servers_that_answered_badly_are_tried_last() -> None:
    async def main() -> None:
        servers = endpoints("a", "b", "c")
        order = [(await placed_after(servers, skip)).endpoint.url for skip in range(4)]
        assert sorted(order[:3]) == ["a", "b", "c"]
        assert order[3] == order[0]

    async def placed_after(servers: Endpoints, skip: int) -> Place:
        place = await servers.place("x", skip=skip)
        assert place is not None
        return place

    run(main())


def test_a_probe_that_is_cancelled_leaves_the_way_to_another() -> None:
    async def main() -> None:
        servers = endpoints("a")
        await lose(servers)
        probe = await placed(servers)
        servers.give_back(probe, None)
        again = await placed(servers)
        assert (again.is_probe, now()) == (True, 1.0)

    run(main())


@pytest.mark.parametrize("reason", ["http_503", "http_429", "http_500", "not_a_choice"])
def test_a_server_that_says_anything_is_up(reason: str) -> None:
    async def main() -> None:
        servers = endpoints("a", "b")
        home = await call(servers, SAID)
        said = Failure(reason=reason, detail="", retryable=True)
        for _ in range(3 * LOST_TO_OPEN):
            assert await call(servers, said) == home

    run(main())


def test_an_overloaded_server_gets_fewer_calls_at_once() -> None:
    async def main() -> None:
        servers = endpoints(max_in_flight=8)
        await call(servers, BUSY)
        held = [await placed(servers) for _ in range(4)]
        fifth = asyncio.create_task(placed(servers))
        await asyncio.sleep(1.0)
        assert not fifth.done()
        servers.give_back(held[0], SAID)
        await fifth

    run(main())
