"""The part of vLLM that scores texts, on loopback: a token per character, three per image."""

import json
from typing import Any

from aiohttp import web

START, END, OPEN, MELTED, IMAGE = 1, 2, 3, 4, 5
ROLES = {"system": 6, "user": 7, "assistant": 8}


class ScoringServer:
    """`async with ScoringServer() as server`; an answer that begins with ~ melts into the mark before it."""

    def __init__(self, *, trouble: str = "") -> None:
        """`trouble`: "cut" loses the last id of a prompt, "busy" refuses the first call of each kind."""
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self._trouble = trouble

    async def __aenter__(self) -> "ScoringServer":
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        address: tuple[str, int] = self._runner.addresses[0]
        self.url = f"http://127.0.0.1:{address[1]}/v1"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        return self._said(body, {"tokens": ids_of(body)})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        ids = ids_of(body)
        entries = [None, *({str(id_): {"logprob": logprob_of(id_)}} for id_ in ids[1:])]
        if self._trouble == "cut":
            ids, entries = ids[:-1], entries[:-1]
        return self._said(body, {"prompt_token_ids": ids, "prompt_logprobs": entries})

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body = await request.json()
        self.bodies.append((request.path, body))
        return body

    def _said(self, body: dict[str, Any], reply: dict[str, Any]) -> web.Response:
        same = [path for path, earlier in self.bodies if json.dumps(earlier) == json.dumps(body)]
        busy = self._trouble == "busy" and len(same) == 1
        return web.json_response({} if busy else reply, status=503 if busy else 200)


def ids_of(body: dict[str, Any]) -> list[int]:
    """What the chat becomes, by this server's template."""
    ids: list[int] = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        is_reply = message["role"] == "assistant"
        ids += [START, ROLES[message["role"]]]
        if is_reply:
            ids.append(MELTED if parts[0]["text"].startswith("~") else OPEN)
        for part in parts:
            ids += [IMAGE] * 3 if part["type"] == "image_url" else [ord(char) for char in part["text"]]
        ids.append(END)
    if body.get("add_generation_prompt", True):
        return [*ids, START, ROLES["assistant"], OPEN]
    return ids[:-1] if body.get("continue_final_message") else ids


def logprob_of(id_: int) -> float:
    """A number that tells characters apart."""
    return -id_ / 100
