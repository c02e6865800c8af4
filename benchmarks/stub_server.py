"""A chat-completions server for benchmarks: in a process of its own, with a fixed latency, and never the slow part.

StubServer(Service()) --spawn--> process: HTTP request --delay_s, one of `places`--> Service.answer(body)
       tell("method", ...) --pipe--> Service.method(...) --pipe--> what it returned
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.connection
from collections import deque
from typing import Any, Self

REPLY = "How many of them can be counted in picture %08d?"
"""With a place for a number, so that no reply is another's double."""
_HEAD = b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def http(body: bytes, status: int = 200) -> bytes:
    """A whole response."""
    return _HEAD % (status, b"OK" if status == 200 else b"Trouble", len(body)) + body


def completion(text: str, *, prompt_tokens: int = 200) -> bytes:
    """The body of a reply in OpenAI's protocol."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 12, "total_tokens": prompt_tokens + 12}
    answer = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "stub"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(answer | {"choices": [choice], "usage": usage}).encode()


_SAME = http(completion(REPLY)).replace(
    b"Content-Length: %d" % len(completion(REPLY)), b"Content-Length: %d" % len(completion(REPLY % 0))
)


class Service:
    """What the server says, and its counts; lives in the server's process."""

    def __init__(self, *, delay_s: float = 0.05, places: int | None = None) -> None:
        """`places`: calls worked at once; others wait, as before a GPU that is full."""
        self.delay_s, self.places = delay_s, places
        self.served = self.in_flight = self.peak = 0
        self.waiting: deque[tuple[_Connection, bytes, bool]] = deque()

    def answer(self, body: bytes) -> bytes | None:
        """A whole HTTP response; None: never; half of one is followed by a hang-up."""
        return _SAME % self.served

    def counts(self) -> tuple[int, int]:
        """Requests served and most in flight, since the last time."""
        found = self.served, self.peak
        self.served = self.peak = 0
        return found


class _Connection(asyncio.Protocol):
    """The least HTTP server that a client believes."""

    def __init__(self, service: Service, open_connections: set[_Connection]) -> None:
        self._service, self._open = service, open_connections
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            _, _, length = head.partition(b"content-length:")
            size = int(length.split(b"\r\n", 1)[0] or 0)
            if len(self._data) < end + 4 + size:
                if b"100-continue" in head:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = self._data[end + 4 : end + 4 + size]
            self._data = self._data[end + 4 + size :]
            service, last = self._service, b"connection: close" in head
            if service.places is not None and service.in_flight >= service.places:
                service.waiting.append((self, body, last))
            else:
                self.begin(body, last)

    def begin(self, body: bytes, last: bool) -> None:
        """From here on it takes `delay_s`."""
        service = self._service
        service.in_flight += 1
        service.peak = max(service.peak, service.in_flight)
        asyncio.get_running_loop().call_later(service.delay_s, self._answer, body, last)

    def _answer(self, body: bytes, last: bool) -> None:
        service = self._service
        service.in_flight -= 1
        if service.waiting:
            connection, next_body, next_last = service.waiting.popleft()
            connection.begin(next_body, next_last)
        if self.transport.is_closing():
            return  # whoever asked is gone
        service.served += 1
        answer = service.answer(body)
        if answer is None:
            return
        self.transport.write(answer)
        head, _, said = answer.partition(b"\r\n\r\n")
        if last or len(said) < int(head.rpartition(b"Content-Length: ")[2]):
            self.transport.close()


def _serve(pipe: multiprocessing.connection.Connection, service: Service) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        connections: set[_Connection] = set()

        async def listen(port: int) -> asyncio.Server:
            return await loop.create_server(lambda: _Connection(service, connections), "127.0.0.1", port)

        server = await listen(0)
        port = server.sockets[0].getsockname()[1]
        pipe.send(port)
        while command := await loop.run_in_executor(None, pipe.recv):
            name, arguments = command
            if name == "go_away":
                server.close()
                for connection in list(connections):
                    connection.transport.abort()
                pipe.send(None)
            elif name == "come_back":
                server = await listen(port)
                pipe.send(None)
            else:
                pipe.send(getattr(service, name)(*arguments))

    with contextlib.suppress(KeyboardInterrupt, EOFError):
        asyncio.run(main())


class StubServer:
    """The process; a context manager."""

    def __init__(self, service: Service) -> None:
        self._pipe, end = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(end, service), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._pipe.recv()}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def tell(self, name: str, *arguments: Any) -> Any:
        """Call a method of the service; `go_away` and `come_back` close and open the port."""
        self._pipe.send((name, arguments))
        return self._pipe.recv()
