from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from misbehaving_server import Server

from infinity_mm.engines.killers import Killers
from infinity_mm.engines.openai_http import Http

PICTURE = ("sha256",)


def killers(*, other_answered_at: float | None) -> Killers:
    """A picture that was lost at 1 s, in two calls, and at 3 s."""
    found = Killers()
    found.lost(PICTURE, sent_at=0.0, now=1.0)
    found.lost(PICTURE, sent_at=0.5, now=1.0)
    assert not found.is_suspect(PICTURE)
    if other_answered_at is not None:
        found.answered(("another",), now=other_answered_at)
    found.lost(PICTURE, sent_at=2.0, now=3.0)
    assert found.is_suspect(PICTURE)
    return found


@pytest.mark.parametrize(("answered_at", "is_killer"), [(2.5, True), (0.5, False), (None, False)])
def test_a_picture_is_condemned_only_if_others_were_answered_meanwhile(
    answered_at: float | None, is_killer: bool
) -> None:
    found = killers(other_answered_at=answered_at)
    assert found.died_alone(PICTURE) is is_killer
    assert (PICTURE in found) is is_killer


def test_an_answer_clears_a_suspect() -> None:
    found = killers(other_answered_at=2.5)
    found.answered(PICTURE, now=4.0)
    assert not found.is_suspect(PICTURE)


@pytest.mark.parametrize(
    ("order", "is_death"),
    [
        ("drop 1", True),
        ("last-words", True),
        ("half 1", False),
        ("always 500", False),
        ("hang", False),
        ("a", False),
    ],
)
def test_a_server_has_died_if_it_is_gone_without_a_word_or_says_so(order: str, is_death: bool) -> None:
    async def run() -> bool:
        timeout = aiohttp.ClientTimeout(total=0.3)
        async with Server() as server, aiohttp.ClientSession(timeout=timeout) as session:
            body = json.dumps({"messages": [{"content": order}]}).encode()
            http = Http(session, timeout_s=0.3, secret=None)
            return (await http.post(f"{server.url}/chat/completions", body, str)).is_death

    assert asyncio.run(run()) is is_death
