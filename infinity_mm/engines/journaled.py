"""Remember every reply and likelihood: ask the inner engine only what no journal line answers.

requests --keys--> journal? --yes--> reply (from_journal)
                      |--no--> being asked now? --yes--> wait for that answer
                                     |--no--> inner engine --> put, sync, reply or failure

Requests that the engine answers independently are asked one by one, so a kill loses no reply because its neighbour
was still being written.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar, final

from infinity_mm.engines.allowance import OUT_OF_BUDGET
from infinity_mm.engines.base import (
    Capabilities,
    Engine,
    Failure,
    Likelihood,
    Reply,
    Request,
    Scoring,
)
from infinity_mm.errors import BudgetSpentError, UserError, explain
from infinity_mm.storage.journal import Journal

Q = TypeVar("Q", Request, Scoring)
A = TypeVar("A", Reply, Likelihood)
Value = Mapping[str, Any]


@final
class Journaled:
    """Wraps an engine so that no reply is paid for twice. Failures are recorded as well: a replay gives them again, a
    run asks again, unless the model did answer.

    An answer is returned only once it is on disk. Identical requests, in one call or in several calls at the same
    time, are asked once; all but the first are marked `from_journal`.
    """

    def __init__(
        self, engine: Engine, journal: Journal, *, mode: Literal["record", "replay"] = "record"
    ) -> None:
        """In mode `replay` the engine is never called: a request without a journal line raises `UserError`."""
        self._engine = engine
        self._journal = journal
        self._mode = mode
        self._in_flight: dict[str, asyncio.Future[Any]] = {}
        """Key -> what another call will get; None if that call was cancelled or raised."""
        self._commit = _GroupCommit(journal)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner engine."""
        return self._engine.capabilities

    @property
    def fingerprint(self) -> str:
        """That of the inner engine."""
        return self._engine.fingerprint

    async def generate(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """Recorded replies, and new ones for the rest."""
        return await self._answers(requests, self._engine.generate, reply_from)

    async def score(self, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
        """Recorded likelihoods, and new ones for the rest."""
        return await self._answers(scorings, self._engine.score, likelihood_from)

    async def _answers(
        self,
        requests: Sequence[Q],
        ask: Callable[[Sequence[Q]], Awaitable[list[A | Failure]]],
        read: Callable[[Value], A],
    ) -> list[A | Failure]:
        keys = [request.key(self.fingerprint) for request in requests]
        answers: dict[str, A | Failure] = {}
        misses: dict[str, Q] = {}
        awaited: dict[str, Q] = {}
        for key, request in zip(keys, requests, strict=True):
            if self._mode == "replay":
                answers[key] = replayed(self._journal, request, key, read)
            elif (recorded := self._journal.get(key)) is not None:
                answers[key] = read(recorded)
            elif (last := _last_failure(self._journal, key)) is not None and last[1].is_said:
                answers[key] = last[1]
            elif key in self._in_flight:
                awaited[key] = request
            else:
                misses.setdefault(key, request)
        waiting = {key: self._in_flight[key] for key in awaited}
        if misses:
            answers |= await self._ask(misses, ask, read)
        for key, request in awaited.items():
            answer = await asyncio.shield(waiting[key])
            answers[key] = answer if answer is not None else (await self._answers([request], ask, read))[0]
        return _in_order(keys, answers)

    async def _ask(
        self,
        misses: Mapping[str, Q],
        ask: Callable[[Sequence[Q]], Awaitable[list[A | Failure]]],
        read: Callable[[Value], A],
    ) -> dict[str, A | Failure]:
        loop = asyncio.get_running_loop()
        futures = {key: loop.create_future() for key in misses}
        self._in_flight |= futures
        parts = [[key] for key in misses] if self.capabilities.independent else [list(misses)]

        async def part_of(keys: Sequence[str]) -> dict[str, A | Failure]:
            asked = await ask([misses[key] for key in keys])
            answers = {
                key: self._recorded(key, answer, read)
                for key, answer in zip(keys, asked, strict=True)
                if answer is not OUT_OF_BUDGET
            }
            await self._commit()
            self._settle({key: futures[key] for key in keys}, answers)
            return {key: _fresh(answer) for key, answer in answers.items()}

        asking = [asyncio.create_task(part_of(keys)) for keys in parts]
        try:
            found = {key: answer for part in await asyncio.gather(*asking) for key, answer in part.items()}
            if len(found) < len(misses):  # not before the others are on disk
                raise BudgetSpentError(OUT_OF_BUDGET.detail)
            return found
        finally:
            for task in asking:
                task.cancel()
            self._settle(futures, {})

    def _settle(self, futures: Mapping[str, asyncio.Future[Any]], answers: Mapping[str, Any]) -> None:
        """Tell those that wait; None where the call was cancelled or raised, and they ask themselves."""
        for key, future in futures.items():
            if not future.done():
                future.set_result(answers.get(key))
                del self._in_flight[key]

    def _recorded(self, key: str, answer: A | Failure, read: Callable[[Value], A]) -> A | Failure:
        """The answer as every later run will read it, which is what this run must use too."""
        if not isinstance(answer, Failure):
            return read(self._journal.put(key, answer_value(answer)))
        last = _last_failure(self._journal, key)
        if last is None or last[1] != answer:
            number = 0 if last is None else last[0] + 1
            self._journal.put(_failure_key(key, number), {"failure": asdict(answer)})
        return answer


_SYNC_EVERY_S = 0.005
"""A disk that syncs faster gains nothing by it: a model takes longer, and each sync costs a thread its turn."""


@final
class _GroupCommit:
    """Calls that end while one sync runs, or within `_SYNC_EVERY_S` of its start, share the next one."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = asyncio.Lock()
        self._asked = 0
        self._done = 0
        self._next_at = 0.0

    async def __call__(self) -> None:
        """Return when everything put before the call is on disk."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._done >= mine:
                return
            loop = asyncio.get_running_loop()
            if (early_s := self._next_at - loop.time()) > 0:
                await asyncio.sleep(early_s)
            self._next_at = loop.time() + _SYNC_EVERY_S
            upto = self._asked
            try:
                await asyncio.to_thread(self._journal.sync)
            except UserError:
                raise
            except Exception as error:  # each kind of store has its own; none of them is the sample's fault
                raise explain(
                    what=f"replies cannot be written to the journal: {error}",
                    where=self._journal.directory,
                    fix="make room on the disk, or look after the store, and run the same command again",
                ) from error
            self._done = upto


def answer_value(answer: Reply | Likelihood) -> dict[str, Any]:
    """What the journal keeps of a reply or a likelihood: the fields that say something."""
    if isinstance(answer, Likelihood):
        value: dict[str, Any] = {
            "mean_logprob": answer.mean_logprob,
            "num_tokens": answer.num_tokens,
            "prompt_tokens": answer.prompt_tokens,
        }
        return value | ({"simulated": True} if answer.simulated else {})
    reply = answer
    value = {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }
    if reply.choice_logprobs is not None:
        value["choice_logprobs"] = list(reply.choice_logprobs)
    for name in ("reasoning", "cached_tokens", "simulated"):
        if said := getattr(reply, name):
            value[name] = said
    return value


def reply_from(value: Value) -> Reply:
    """The reply that a journal line holds."""
    logprobs = value.get("choice_logprobs")
    return Reply(
        **{**value, "choice_logprobs": None if logprobs is None else tuple(logprobs)}, from_journal=True
    )


def likelihood_from(value: Value) -> Likelihood:
    """The likelihood that a journal line holds."""
    return Likelihood(**value, from_journal=True)


def replayed(journal: Journal, request: Q, key: str, read: Callable[[Value], A]) -> A | Failure:
    """What the recorded run got: the answer, else the last failure. Raises `UserError` if it never asked."""
    value = journal.get(key)
    if value is not None:
        return read(value)
    last = _last_failure(journal, key)
    if last is None:
        raise no_line(request, key)
    return last[1]


def _last_failure(journal: Journal, key: str) -> tuple[int, Failure] | None:
    """Number and failure of the last try that failed; a run that was killed may have had others before."""
    found: tuple[int, Failure] | None = None
    for number in itertools.count():
        value = journal.get(_failure_key(key, number))
        if value is None:
            break
        found = number, Failure(**value["failure"])
    return found


def _failure_key(key: str, number: int) -> str:
    """Beside the key of the reply, which a later try may still get."""
    return f"{key}-failure-{number}"


def no_line(request: Request | Scoring, key: str) -> UserError:
    """The error for a request that a replay cannot answer."""
    said = request.turns[-1].text if request.turns else ""
    draw = f"seed {request.seed}, draw {request.draw}" if isinstance(request, Request) else "scored"
    return explain(
        what=f"the journal has no reply to the request that ends with {said[-200:]!r}, {draw}, "
        f"images {[image.sha256[:12] for image in request.images]}",
        where=f"replay, journal key {key}",
        fix="replay with the configuration, prompts and engine fingerprint of the recorded run, or run with a model",
    )


def _fresh(answer: A | Failure) -> A | Failure:
    return answer if isinstance(answer, Failure) else replace(answer, from_journal=False)


def _in_order(keys: Sequence[str], answers: Mapping[str, A | Failure]) -> list[A | Failure]:
    """One answer per key; only the first of a repeated one can be new."""
    seen: set[str] = set()
    ordered: list[A | Failure] = []
    for key in keys:
        answer = answers[key]
        is_repeat = key in seen and not isinstance(answer, Failure)
        ordered.append(replace(answer, from_journal=True) if is_repeat else answer)
        seen.add(key)
    return ordered
