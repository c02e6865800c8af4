"""A chat-completions server on loopback that does what the last text of a request says."""

import asyncio
import json
from collections import Counter
from typing import Any

from aiohttp import web


class Server:
    """`async with Server() as server`; the address is `server.url`."""

    def __init__(self, *, delay_s: float = 0.0, is_sick: bool = False, lists_models: bool = True) -> None:
        """A sick one answers 500 to all; one that lists no models closes the connection on who asks for them."""
        self.calls: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._delay_s = delay_s
        self._is_sick = is_sick
        self._lists_models = lists_models
        self._callers: set[asyncio.Transport] = set()

    async def __aenter__(self) -> "Server":
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        self._port = 0
        await self._listen()
        address: tuple[str, int] = self._runner.addresses[0]
        self._port = address[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        return self

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await self._site.start()

    async def _die(self) -> None:
        """Whoever is connected loses his call, and for a moment nobody can connect."""
        for transport in self._callers:
            transport.close()
        self._callers.clear()
        await self._site.stop()
        self._rebirth = asyncio.get_running_loop().call_later(
            0.03, lambda: asyncio.ensure_future(self._listen())
        )

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        assert request.transport is not None
        self._callers.add(request.transport)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self._delay_s)
            content = body["messages"][-1]["content"]
            order = content if isinstance(content, str) else content[-1]["text"]
            self.calls[order] += 1
            if self._is_sick:
                return web.json_response({}, status=500)
            return await self._obey(order, self.calls[order], request)
        finally:
            self._in_flight -= 1

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if not self._lists_models:
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"data": []})

    async def _obey(self, order: str, call: int, request: web.Request) -> web.StreamResponse:
        match order.split():
            case ["once", status] if call == 1:
                return web.json_response({"error": {"message": "busy"}}, status=int(status))
            case ["retry-after", seconds] if call == 1:
                return web.json_response({}, status=429, headers={"Retry-After": seconds})
            case ["always", status]:
                return web.json_response(
                    {"error": {"message": f"no: {request.headers.get('Authorization')}"}}, status=int(status)
                )
            case ["hang", *_]:
                await asyncio.sleep(60)
            case ["drop", times] if call <= int(times):
                assert request.transport is not None
                request.transport.close()
            case ["kill", times] if call <= int(times):
                await self._die()
            case ["half", times] if call <= int(times):
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b'{"choices": [')
                assert request.transport is not None
                request.transport.close()
                return response
            case ["last-words"]:
                said = "EngineCore encountered an issue. See stack trace (above) for the root cause."
                return web.json_response({"error": {"message": said}}, status=500)
            case ["garbage"]:
                return web.Response(text="<html>502 but they say 200</html>")
            case ["shape"]:
                return web.json_response({"choices": []})
            case ["body", *words]:
                return web.json_response(json.loads(" ".join(words)))
        return web.json_response(completion(f"you said {order}"))


def completion(text: str | None, *, finish_reason: str = "stop", **message: str) -> dict[str, Any]:
    """A well-formed response."""
    return {
        "choices": [
            {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    }
