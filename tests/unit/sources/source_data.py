"""Small pictures, tars and servers for the tests of sources."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from infinity_mm.runtime.local import LocalExecutor
from infinity_mm.runtime.run import Run
from infinity_mm.runtime.runner import run_passes
from infinity_mm.sources.config import SourceConfig
from infinity_mm.sources.read_pass import ReadConfig, ReadPass
from infinity_mm.sources.unique_pass import UniquePass


def png(seed: int, size: tuple[int, int] = (40, 48)) -> bytes:
    """A picture of one colour; another seed, other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (seed % 256, seed // 256 % 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def talk(question: str, answer: str = "Yes.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def entry(id_: str, image: bytes, **more: Any) -> list[tuple[str, bytes]]:
    """The two members of a sample as Infinity-MM publishes it."""
    question = "<image>\nWhat is it?" if image else "What is it?"
    body = {
        "id": id_,
        "source": "LVIS",
        "conversations": talk(question),
        "image": f"{id_}.jpg",
        "phash": 1,
        **more,
    }
    return [(f"{id_}.json", json.dumps(body).encode()), (f"{id_}.jpg", image)]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def read_in(tmp_path: Path, *sources: SourceConfig, images_per_unit: int = 256) -> Run:
    """A run with passes `read` and `unique`."""
    run = Run(str(tmp_path / "run"))
    config = ReadConfig(sources=sources, images_per_unit=images_per_unit)
    run_passes([ReadPass(config=config), UniquePass()], run, LocalExecutor())
    return run


def reasons(run: Run) -> dict[str, str]:
    """Key -> reason of what was dropped on reading."""
    return {row["key"]: row["reason"] for row in run.dropped("read")}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers from the server's table: path -> (status, headers, body); counts what was asked."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("Host")))
        status, headers, body = server.table[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        pieces: list[Any] = body if isinstance(body, list) else [body]
        for piece in pieces:
            try:
                data: Any = piece() if callable(piece) else piece
                self.wfile.write(data)
            except OSError:  # the other side hung up
                return

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(table: dict[str, tuple[int, dict[str, str], Any]]) -> Iterator[Any]:
    """A server on this machine; its `url`, and `asked` with what came."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        state: Any = server
        state.table, state.asked, state.daemon_threads = table, [], True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
