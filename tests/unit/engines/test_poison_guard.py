"""Engines that die of certain images, behind the guard: who is found guilty, and how many restarts that takes."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine_fakes import until
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_mm.engines.allowance import with_allowance
from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    EngineDead,
    Failure,
    Likelihood,
    Reply,
    Request,
    Scoring,
    no_likelihoods,
)
from infinity_mm.engines.guard import Guarded
from infinity_mm.engines.journaled import Journaled
from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef, ImageSlot, Text, Turn
from infinity_mm.storage.journal import Journal


def look(image: str, text: str = "what?") -> Request:
    return Request(
        turns=(Turn("user", (ImageSlot(0), Text(text))),),
        images=(ImageRef(sha256=image, uri="memory", width=8, height=8),),
        max_new_tokens=4,
    )


@dataclass
class Mortal:
    """Opens engines that die when they have looked at a poisoned image; what is in flight dies with them."""

    poisoned: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    """Images about which there is never an answer."""
    deaths_left: int = 10**6
    """After so many deaths nothing is poisonous any more."""
    lives: int = 0
    asked: list[str] = field(default_factory=list)
    restart: asyncio.Event | None = None
    """If given, only the first engine starts before it is set."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        self.lives += 1
        if self.restart is not None and self.lives > 1:
            await self.restart.wait()
        yield _Engine(self)


class _Engine:
    capabilities = Capabilities(images_per_prompt=1, choice_logprobs=False, seeds=True, reproducible="exact")
    fingerprint = "mortal"

    def __init__(self, owner: Mortal) -> None:
        self._owner = owner
        self._dead = False

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        await self._look(requests)
        return [Reply(text=f"{r.images[0].sha256 if r.images else ''} {r.turns[-1].text}") for r in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        await self._look(scorings)
        return [Likelihood(mean_logprob=-1.0, num_tokens=len(s.turns[-1].text)) for s in scorings]

    async def _look(self, requests: Sequence[Request] | Sequence[Scoring]) -> None:
        for request in requests:
            self._owner.asked.append("".join(image.sha256 for image in request.images))
        await asyncio.sleep(0)  # all that is asked at the same time is in flight now
        if self._owner.silent & {image.sha256 for request in requests for image in request.images}:
            await asyncio.Event().wait()
        if not self._dead and self._owner.deaths_left:
            seen = {image.sha256 for request in requests for image in request.images}
            self._dead = bool(seen & self._owner.poisoned)
            self._owner.deaths_left -= self._dead
        for _ in range(3):
            await asyncio.sleep(0)
        if self._dead:
            raise EngineDead("core is gone")


def answers_and_restarts(
    mortal: Mortal, requests: Sequence[Request], *, max_restarts: int = 100
) -> tuple[list[Reply | Failure], int]:
    async def run() -> tuple[list[Reply | Failure], int]:
        async with Guarded(mortal.open, max_restarts=max_restarts) as engine:
            return await engine.generate(requests), engine.num_restarts

    return asyncio.run(run())


def said(answers: Sequence[Reply | Failure]) -> list[str]:
    return [answer.text if isinstance(answer, Reply) else answer.reason for answer in answers]


def test_an_engine_that_lives_is_started_once() -> None:
    mortal = Mortal()
    answers, restarts = answers_and_restarts(mortal, [look("a"), look("b")])
    assert (said(answers), restarts, mortal.lives) == (["a what?", "b what?"], 0, 1)


def test_one_killer_among_eight_costs_four_restarts_and_only_its_own_request() -> None:
    mortal = Mortal(poisoned={"c"})
    answers, restarts = answers_and_restarts(mortal, [look(image) for image in "abcdefgh"])
    expected = [f"{image} what?" for image in "abcdefgh"]
    expected[2] = "killed_engine"
    # Dead with eight, four (abcd), two (cd) and one (c) in flight.
    assert (said(answers), restarts) == (expected, 4)
    assert isinstance(answers[2], Failure)
    assert answers[2].detail == "the engine died of image c, asked alone"
    assert not answers[2].retryable


def test_a_killer_that_was_alone_is_asked_once_more() -> None:
    mortal = Mortal(poisoned={"a"})
    answers, restarts = answers_and_restarts(mortal, [look("a")])
    assert (said(answers), restarts, mortal.asked) == (["killed_engine"], 2, ["a", "a"])


def test_all_questions_about_a_killing_image_are_judged_as_one() -> None:
    mortal = Mortal(poisoned={"b"})
    requests = [look(image, f"{number}?") for image in "abcd" for number in range(3)]
    answers, restarts = answers_and_restarts(mortal, requests)
    assert restarts == 3
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Failure)] == [3, 4, 5]


def test_a_death_that_does_not_come_back_costs_no_request() -> None:
    answers, restarts = answers_and_restarts(Mortal(poisoned={"b"}, deaths_left=1), [look(c) for c in "abcd"])
    assert (said(answers), restarts) == ([f"{c} what?" for c in "abcd"], 1)


def test_images_that_were_answered_before_are_suspected_last() -> None:
    async def run() -> int:
        mortal = Mortal(poisoned={"z"})
        async with Guarded(mortal.open) as engine:
            await engine.generate([look(image) for image in "abcdefg"])
            answers = await engine.generate([look(image, "more?") for image in "abcdefgz"])
            assert said(answers) == [*(f"{image} more?" for image in "abcdefg"), "killed_engine"]
            return engine.num_restarts

    assert asyncio.run(run()) == 2


def test_new_requests_wait_while_the_killer_is_looked_for_and_it_is_not_sent_again() -> None:
    async def run() -> None:
        mortal = Mortal(poisoned={"b"}, restart=asyncio.Event())
        assert mortal.restart is not None
        async with Guarded(mortal.open) as engine:
            first = asyncio.create_task(engine.generate([look("a"), look("b")]))
            await until(lambda: mortal.lives == 2)
            late = asyncio.create_task(engine.generate([look("c"), look("b", "again?")]))
            await asyncio.sleep(0.001)
            assert mortal.asked == ["a", "b"]
            mortal.restart.set()
            assert said(await first) == ["a what?", "killed_engine"]
            assert said(await late) == ["c what?", "killed_engine"]
            assert mortal.asked == ["a", "b", "a", "b", "c"]

    asyncio.run(run())


def test_a_caller_that_gave_up_does_not_hold_up_the_others() -> None:
    async def run() -> None:
        mortal = Mortal(poisoned={"b"}, restart=asyncio.Event())
        assert mortal.restart is not None
        async with Guarded(mortal.open) as engine:
            patient = asyncio.create_task(engine.generate([look("a")]))
            hasty = asyncio.create_task(engine.generate([look("b")]))
            await until(lambda: mortal.lives == 2)
            hasty.cancel()
            mortal.restart.set()
            assert said(await patient) == ["a what?"]

    asyncio.run(run())


def test_a_killer_is_found_among_texts_that_are_scored_as_well() -> None:
    def scoring(image: str) -> Scoring:
        request = look(image)
        return Scoring(turns=(*request.turns, Turn("assistant", (Text("abc"),))), images=request.images)

    async def run() -> tuple[list[Reply | Failure], list[Likelihood | Failure]]:
        mortal = Mortal(poisoned={"b"})
        async with Guarded(mortal.open) as engine:
            scores = [scoring(image) for image in "bcd"]
            return await asyncio.gather(engine.generate([look("a"), look("b")]), engine.score(scores))

    replies, likelihoods = asyncio.run(run())
    assert said(replies) == ["a what?", "killed_engine"]
    assert [each.num_tokens if isinstance(each, Likelihood) else each.reason for each in likelihoods] == [
        "killed_engine",
        3,
        3,
    ]


def test_an_engine_that_dies_of_everything_ends_the_run_and_condemns_nobody() -> None:
    images = [f"{number}" for number in range(16)]
    mortal = Mortal(poisoned=set(images))
    with pytest.raises(UserError, match="died 6 times in a row"):
        answers_and_restarts(mortal, [look(image) for image in images], max_restarts=5)
    assert mortal.lives == 6


def test_leaving_while_the_killer_is_looked_for_ends_the_search() -> None:
    async def run() -> None:
        mortal = Mortal(poisoned={"b"}, restart=asyncio.Event())
        async with Guarded(mortal.open) as engine:
            waiting = asyncio.create_task(engine.generate([look("a"), look("b")]))
            await until(lambda: mortal.lives == 2)
            waiting.cancel()
        assert len(asyncio.all_tasks()) == 1 + (not waiting.done())

    asyncio.run(run())


def test_an_engine_that_does_not_start_again_ends_the_run() -> None:
    class Once(Mortal):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Engine]:
            if self.lives:
                raise OSError("no GPU")
            async with super().open() as engine:
                yield engine

    with pytest.raises(OSError, match="no GPU"):
        answers_and_restarts(Once(poisoned={"a"}), [look("a"), look("b")])


def test_an_engine_that_is_silent_too_long_counts_as_dead() -> None:
    mortal = Mortal(silent={"b"})

    async def run() -> list[Reply | Failure]:
        async with Guarded(mortal.open, timeout_s=0.05) as engine:
            return await engine.generate([look("a"), look("b")])

    assert said(asyncio.run(run())) == ["a what?", "killed_engine"]
    assert mortal.lives == 3


@pytest.mark.parametrize(("number", "verdict"), [(2, "killed_engine"), (1, "out_of_budget")])
def test_every_attempt_asks_the_budget_for_leave(number: int, verdict: str) -> None:
    class Purse:
        left, settled = number, 0

        async def reserve(self, requests: Sequence[Request | Scoring]) -> int:
            self.left -= 1
            return int(self.left >= 0)

        def settle(self, request: Request | Scoring, answer: Reply | Likelihood | Failure) -> None:
            self.settled += 1

    mortal, purse = Mortal(poisoned={"a"}), Purse()

    async def run() -> list[Reply | Failure]:
        async with Guarded(mortal.open) as engine:
            return await with_allowance(engine, purse).generate([look("a")])

    assert said(asyncio.run(run())) == [verdict]
    assert (len(mortal.asked), purse.settled) == (number, number)


def test_a_request_whose_slots_are_not_its_images_never_reaches_the_engine() -> None:
    image = look("a").images[0]
    no_slot = Request(turns=(Turn("user", (Text("?"),)),), images=(image,), max_new_tokens=1)
    no_image = Request(turns=(Turn("user", (ImageSlot(0), Text("?"))),), max_new_tokens=1)
    twice = Request(turns=(Turn("user", (ImageSlot(0), ImageSlot(0))),), images=(image,), max_new_tokens=1)
    mortal = Mortal()
    answers, _ = answers_and_restarts(mortal, [no_slot, no_image, twice])
    assert said(answers) == ["bad_request"] * 3
    assert mortal.asked == []


def test_the_verdict_is_journaled_and_a_second_run_does_not_ask_again(tmp_path: Path) -> None:
    async def run(mortal: Mortal, worker: str) -> list[Reply | Failure]:
        async with Guarded(mortal.open) as engine:
            journaled = Journaled(engine, Journal(str(tmp_path), worker=worker))
            return await journaled.generate([look("a"), look("b")])

    first, second = Mortal(poisoned={"b"}), Mortal(poisoned={"b"})
    assert said(asyncio.run(run(first, "1"))) == ["a what?", "killed_engine"]
    assert said(asyncio.run(run(second, "2"))) == ["a what?", "killed_engine"]
    assert (first.lives, second.lives, second.asked) == (3, 1, [])


@settings(deadline=None, max_examples=60)
@given(number=st.integers(1, 40), poisoned=st.sets(st.integers(0, 39), max_size=4))
def test_exactly_the_killers_are_found_wherever_they_are(number: int, poisoned: set[int]) -> None:
    killers = {i for i in poisoned if i < number}
    mortal = Mortal(poisoned={str(i) for i in killers})
    answers, restarts = answers_and_restarts(mortal, [look(str(i)) for i in range(number)])
    assert said(answers) == ["killed_engine" if i in killers else f"{i} what?" for i in range(number)]
    depth = max(1, math.ceil(math.log2(number)))
    assert restarts <= 1 + depth * len(killers) if killers else restarts == 0
    assert mortal.lives == restarts + 1


SERVER = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "poison" in asked["images"]:
        os._exit(9)
    print(json.dumps({"number": asked["number"], "text": "seen " + " ".join(asked["images"])}), flush=True)
"""


class _Child:
    """Talks to a server in a process of its own, a line for a request."""

    capabilities = Capabilities(images_per_prompt=1, choice_logprobs=False, seeds=True, reproducible="exact")
    fingerprint = "child"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._reader = asyncio.create_task(self._read())

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        return [Reply(text=await self._ask([image.sha256 for image in r.images])) for r in requests]

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        return no_likelihoods(scorings)

    async def _ask(self, images: list[str]) -> str:
        assert self._process.stdin is not None
        number = len(self._waiting)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"number": number, "images": images}).encode() + b"\n")
        return await self._waiting[number]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            self._waiting[said["number"]].set_result(said["text"])
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EngineDead(f"exit code {await self._process.wait()}"))


def test_a_server_process_that_exits_over_an_image_is_started_again() -> None:
    codes: list[int | None] = []

    @asynccontextmanager
    async def server() -> AsyncIterator[Engine]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            yield _Child(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            codes.append(await process.wait())

    async def run() -> list[Reply | Failure]:
        async with Guarded(server) as engine:
            return await engine.generate([look(image) for image in ("a", "b", "poison", "c", "d")])

    answers = asyncio.run(run())
    assert said(answers) == ["seen a", "seen b", "killed_engine", "seen c", "seen d"]
    assert codes == [9, 9, 0], (
        "a and b were answered before it died, so that c and d were suspected beside it"
    )
