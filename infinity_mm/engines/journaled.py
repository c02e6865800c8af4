"""Remember every reply: ask the inner engine only what no journal line answers.

requests --keys--> journal? --yes--> reply (from_journal)
                      |--no--> being asked now? --yes--> wait for that answer
                                     |--no--> inner engine --> put, sync, reply or failure
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, final

from infinity_mm.engines.allowance import OUT_OF_BUDGET
from infinity_mm.engines.base import Capabilities, Engine, Failure, Reply, Request
from infinity_mm.errors import BudgetSpentError, UserError, explain
from infinity_mm.storage.journal import Journal


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
        self._in_flight: dict[str, asyncio.Future[Reply | Failure | None]] = {}
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
        keys = [request.key(self.fingerprint) for request in requests]
        answers: dict[str, Reply | Failure] = {}
        misses: dict[str, Request] = {}
        awaited: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if self._mode == "replay":
                answers[key] = replayed(self._journal, request, key)
            elif (recorded := self._journal.get(key)) is not None:
                answers[key] = reply_from(recorded)
            elif (last := _last_failure(self._journal, key)) is not None and last[1].is_said:
                answers[key] = last[1]
            elif key in self._in_flight:
                awaited[key] = request
            else:
                misses.setdefault(key, request)
        waiting = {key: self._in_flight[key] for key in awaited}
        if misses:
            answers |= await self._ask(misses)
        for key, request in awaited.items():
            answers[key] = await self._wait(waiting[key], request)
        return _in_order(keys, answers)

    async def _ask(self, misses: Mapping[str, Request]) -> dict[str, Reply | Failure]:
        loop = asyncio.get_running_loop()
        self._in_flight |= {key: loop.create_future() for key in misses}
        answers: dict[str, Reply | Failure] = {}
        try:
            for key, answer in zip(misses, await self._engine.generate(list(misses.values())), strict=True):
                if answer is not OUT_OF_BUDGET:
                    answers[key] = self._recorded(key, answer)
            await self._commit()
            if len(answers) < len(misses):
                raise BudgetSpentError(OUT_OF_BUDGET.detail)
            return {key: _fresh(answer) for key, answer in answers.items()}
        except BaseException:
            answers = {}
            raise
        finally:
            for key in misses:
                self._in_flight.pop(key).set_result(answers.get(key))

    def _recorded(self, key: str, answer: Reply | Failure) -> Reply | Failure:
        """The reply as every later run will read it, which is what this run must use too."""
        if isinstance(answer, Reply):
            return reply_from(self._journal.put(key, reply_value(answer)))
        last = _last_failure(self._journal, key)
        if last is None or last[1] != answer:
            number = 0 if last is None else last[0] + 1
            self._journal.put(_failure_key(key, number), {"failure": asdict(answer)})
        return answer

    async def _wait(
        self, future: asyncio.Future[Reply | Failure | None], request: Request
    ) -> Reply | Failure:
        answer = await asyncio.shield(future)
        return answer if answer is not None else (await self.generate([request]))[0]


@final
class _GroupCommit:
    """Calls that end while one fsync runs share the next one."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = asyncio.Lock()
        self._asked = 0
        self._done = 0

    async def __call__(self) -> None:
        """Return when everything put before the call is on disk."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._done >= mine:
                return
            upto = self._asked
            await asyncio.to_thread(self._journal.sync)
            self._done = upto


def reply_value(reply: Reply) -> dict[str, Any]:
    """What the journal keeps of a reply."""
    return {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "choice_logprobs": None if reply.choice_logprobs is None else list(reply.choice_logprobs),
    }


def reply_from(value: Mapping[str, Any]) -> Reply:
    """The reply that a journal line holds."""
    logprobs = value["choice_logprobs"]
    return Reply(
        text=value["text"],
        finish_reason=value["finish_reason"],
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
        choice_logprobs=None if logprobs is None else tuple(logprobs),
        from_journal=True,
    )


def replayed(journal: Journal, request: Request, key: str) -> Reply | Failure:
    """What the recorded run got: the reply, else the last failure. Raises `UserError` if it never asked."""
    value = journal.get(key)
    if value is not None:
        return reply_from(value)
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


def no_line(request: Request, key: str) -> UserError:
    """The error for a request that a replay cannot answer."""
    said = request.turns[-1].text if request.turns else ""
    return explain(
        what=f"the journal has no reply to the request that ends with {said[-200:]!r}, seed {request.seed}, "
        f"draw {request.draw}, images {[image.sha256[:12] for image in request.images]}",
        where=f"replay, journal key {key}",
        fix="replay with the configuration, prompts and engine fingerprint of the recorded run, or run with a model",
    )


def _fresh(answer: Reply | Failure) -> Reply | Failure:
    return replace(answer, from_journal=False) if isinstance(answer, Reply) else answer


def _in_order(keys: Sequence[str], answers: Mapping[str, Reply | Failure]) -> list[Reply | Failure]:
    """One answer per key; only the first of a repeated one can be new."""
    seen: set[str] = set()
    ordered: list[Reply | Failure] = []
    for key in keys:
        answer = answers[key]
        is_repeat = key in seen and isinstance(answer, Reply)
        ordered.append(replace(answer, from_journal=True) if is_repeat else answer)
        seen.add(key)
    return ordered
