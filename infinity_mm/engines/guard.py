"""A poisoned image takes its engine down, not the run: restart, find out which one it was, answer the others.

    request --slots fit images?--> engine --> reply
                                     |--EngineDead--> restart --halves of what was in flight--> replies
                                                                    |--died again, alone--> Failure killed_engine

Decoding and size checks come before this, where an engine reads its images. What remains is what only the model's own
code trips over (vllm#55546: one malformed image ends the server for everybody).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final

from infinity_mm.engines.allowance import CUT_OFF, OUT_OF_BUDGET, Allowance
from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    EngineDead,
    Failure,
    Likelihood,
    Reply,
    Request,
    Scoring,
)
from infinity_mm.engines.lru import BytesLru
from infinity_mm.errors import explain
from infinity_mm.record import ImageSlot

_log = logging.getLogger(__name__)
_ANSWERED = 1 << 16
"""Pictures remembered as harmless; what is forgotten costs at most a few more restarts."""

Open = Callable[[], AbstractAsyncContextManager[Engine]]
Picture = tuple[str, ...]
"""What is suspected and judged as one: all requests about the same images, or one request without any."""


@dataclass(frozen=True, eq=False)
class _Suspect:
    """A request or scoring that was in flight when the engine died."""

    request: Request | Scoring
    answer: asyncio.Future[Any]


@final
class Guarded:
    """Wraps engines whose `generate` raises `EngineDead`; an async context manager that owns the one in use.
    Each attempt asks the budget for leave.

    A request that stays with a dead engine is asked again with half of its companions, and so on, until a picture
    that kills alone is found: its requests get the failure `killed_engine`, now and later. Pictures that were answered
    before are suspected last. One killer among n new pictures costs at most 1 + log2(n) restarts, rounded up, and 2
    if it was the only one. Nothing new is sent meanwhile. A death that does not come back costs one restart and no
    request.
    """

    def __init__(self, open_engine: Open, *, max_restarts: int = 16, timeout_s: float | None = None) -> None:
        """`max_restarts`: in a row, without a single reply between them; then the run ends with an error.
        `timeout_s`: an engine that is silent about a request for so long counts as dead."""
        self._open_engine = open_engine
        self._timeout_s = timeout_s
        self.allowance: Allowance | None = None
        self._max_restarts = max_restarts
        self._open = asyncio.Event()
        """Clear while the engine is dead and suspects are sifted."""
        self._life: _Life | None = None
        self._in_flight = 0
        self._suspects: list[_Suspect] = []
        self._sifting: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        self._harmless: BytesLru[Picture, bool] = BytesLru(_ANSWERED)
        self._killers: set[Picture] = set()
        self._restarts_in_a_row = 0
        self.num_restarts = 0
        """Engines started again since the first one."""

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner engine."""
        return self._engine.capabilities

    @property
    def fingerprint(self) -> str:
        """That of the inner engine."""
        return self._engine.fingerprint

    async def __aenter__(self) -> Self:
        self._life = await _Life.start(self._open_engine)
        self._open.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sifting is not None:
            self._sifting.cancel()
            await asyncio.gather(self._sifting, return_exceptions=True)
        if self._life is not None:
            await self._life.end()

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """One answer per request, in order, whatever it takes."""
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """The same for likelihoods."""
        return list(await asyncio.gather(*(self._one(scoring) for scoring in scorings)))

    @property
    def _engine(self) -> Engine:
        assert self._life is not None, "Guarded is used outside of its `async with` block"
        return self._life.engine

    async def _one(self, request: Request | Scoring) -> Any:
        if (problem := wrong_slots(request)) is not None:
            return problem
        while not self._open.is_set():  # not `if`: who is let in first may find the engine dead again
            await self._open.wait()
        if self._broken is not None:
            raise self._broken
        if picture_of(request, self.fingerprint) in self._killers:
            return killed(request)
        self._in_flight += 1
        suspect: _Suspect | None = None
        try:
            return await self._ask(request)
        except EngineDead:
            self._open.clear()
            suspect = _Suspect(request, asyncio.get_running_loop().create_future())
            self._suspects.append(suspect)
        finally:
            self._in_flight -= 1
            # The last one to come back from the dead engine starts the inquiry, when all suspects are known.
            if not self._in_flight and self._suspects:
                self._sifting = asyncio.create_task(self._inquire(), name="poison-guard")
        return await suspect.answer

    async def _ask(self, request: Request | Scoring) -> Reply | Likelihood | Failure:
        """One attempt, if the budget has it."""
        if self.allowance is None:
            return await self._attempt(request)
        if not await self.allowance.reserve([request]):
            return OUT_OF_BUDGET
        answer: Reply | Likelihood | Failure = CUT_OFF
        try:
            answer = await self._attempt(request)
        finally:
            self.allowance.settle(request, answer)
        return answer

    async def _attempt(self, request: Request | Scoring) -> Reply | Likelihood | Failure:
        engine = self._engine
        asked: Awaitable[Sequence[Reply | Likelihood | Failure]] = (
            engine.generate([request]) if isinstance(request, Request) else engine.score([request])
        )
        try:
            async with asyncio.timeout(self._timeout_s) as timer:
                answer = (await asked)[0]
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise EngineDead(f"no reply in {self._timeout_s} s") from error
        if not isinstance(answer, Failure):
            self._restarts_in_a_row = 0
            self._harmless.put(picture_of(request, self.fingerprint), True, num_bytes=1)
        return answer

    async def _inquire(self) -> None:
        suspects, self._suspects = self._suspects, []
        try:
            await self._restart()
            pictures: dict[Picture, list[_Suspect]] = {}
            for suspect in suspects:
                pictures.setdefault(picture_of(suspect.request, self.fingerprint), []).append(suspect)
            new = [group for picture, group in pictures.items() if not self._harmless.get(picture)]
            old = [group for picture, group in pictures.items() if self._harmless.get(picture)]
            for part in (*_halves(new), old):
                await self._sift(part)
        except Exception as error:
            self._broken = error
            for suspect in suspects:
                if not suspect.answer.done():
                    suspect.answer.set_exception(error)
        self._open.set()

    async def _sift(self, groups: Sequence[list[_Suspect]]) -> None:
        """Answer the requests of these pictures, or find out which of them kill."""
        waiting = [suspect for group in groups for suspect in group if not suspect.answer.done()]
        if not waiting:
            return
        results = await asyncio.gather(*(self._try(suspect) for suspect in waiting))
        if all(results):
            return
        await self._restart()
        if len(groups) > 1:
            for half in _halves(groups):
                await self._sift(half)
            return
        (group,) = groups
        self._killers.add(picture_of(group[0].request, self.fingerprint))
        for suspect in group:
            _settle(suspect, killed(suspect.request))

    async def _try(self, suspect: _Suspect) -> bool:
        """Whether there is an answer now."""
        try:
            _settle(suspect, await self._ask(suspect.request))
        except EngineDead:
            return False
        return True

    async def _restart(self) -> None:
        if self._restarts_in_a_row >= self._max_restarts:
            raise explain(
                what=f"the engine died {self._restarts_in_a_row + 1} times in a row without a reply between",
                where="engine (poison guard)",
                fix="its own log above says why; most often memory. Run the same command again to go on",
            )
        self._restarts_in_a_row += 1
        self.num_restarts += 1
        _log.warning("The engine died; restart number %d", self.num_restarts)
        assert self._life is not None
        await self._life.end()
        self._life = await _Life.start(self._open_engine)


@final
class _Life:
    """One engine from start to end, in one task: what was entered in a task must be left in it."""

    def __init__(self, open_engine: Open) -> None:
        self._ready: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._hold(open_engine), name="engine")

    @classmethod
    async def start(cls, open_engine: Open) -> _Life:
        """Return once the engine is open; raises what opening raises."""
        life = cls(open_engine)
        try:
            await asyncio.wait((life._ready, life._task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            life._task.cancel()
            await asyncio.gather(life._task, return_exceptions=True)
            raise
        if not life._ready.done():
            await life._task
            raise RuntimeError("an engine's `open` ended without giving an engine")
        return life

    @property
    def engine(self) -> Engine:
        """The open engine."""
        return self._ready.result()

    async def end(self) -> None:
        """Close it; raises what closing raises."""
        self._over.set()
        await self._task

    async def _hold(self, open_engine: Open) -> None:
        async with open_engine() as engine:
            self._ready.set_result(engine)
            await self._over.wait()


def wrong_slots(request: Request | Scoring) -> Failure | None:
    """The failure of a request whose image slots are not its images, each once: servers have died of that as well."""
    slots = [part.index for turn in request.turns for part in turn.content if isinstance(part, ImageSlot)]
    if sorted(slots) == list(range(len(request.images))):
        return None
    return Failure(reason="bad_request", detail=f"image slots {slots} for {len(request.images)} images")


def picture_of(request: Request | Scoring, fingerprint: str) -> Picture:
    """What a request is judged with: its images, or itself, by the key that the journal has asked for already."""
    return tuple(image.sha256 for image in request.images) or (request.key(fingerprint),)


def killed(request: Request | Scoring) -> Failure:
    """The failure of what kills engines."""
    what = (
        "image " + ", ".join(image.sha256 for image in request.images) if request.images else "this request"
    )
    return Failure(reason="killed_engine", detail=f"the engine died of {what}, asked alone")


def _halves(groups: Sequence[list[_Suspect]]) -> tuple[Sequence[list[_Suspect]], ...]:
    """Two halves, or the one there is."""
    if len(groups) < 2:
        return (groups,)
    middle = len(groups) // 2
    return groups[:middle], groups[middle:]


def _settle(suspect: _Suspect, answer: Reply | Likelihood | Failure) -> None:
    """A caller that gave up is not told."""
    if not suspect.answer.done():
        suspect.answer.set_result(answer)
