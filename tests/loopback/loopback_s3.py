"""An S3 server on loopback (moto), one request at a time, with faults at chosen writes."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any, Self, final

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

BUCKET = "bucket"
WRITES = ("PUT", "POST", "DELETE")
_UNAVAILABLE = (
    b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
)
Hook = Callable[[int, str, str], str | None]
"""Number of the write since `restart`, method and path -> None, or a fault: `refuse` answers 500 and does nothing,
`lose` does it and answers 500. It may kill the client."""


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing: a test's output is for its failure."""


@final
class LoopbackS3:
    """Runs in threads of this process."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one = threading.Lock()  # moto looks and then puts; S3 does both at once
        self._server: BaseWSGIServer
        self.before: Hook | None = None
        """Called before a write is done."""
        self.after: Hook | None = None
        """Called when it is done and not yet answered."""
        self.writes: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.open(0)
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, port: int) -> None:
        """Listen; 0 is any free port."""
        self._server = make_server("127.0.0.1", port, self._handle, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Stop listening, and forget nothing; returns the port."""
        port = self._server.server_port
        self._server.shutdown()
        self._thread.join(20)
        self._server.server_close()
        return port

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Point this process at the server, and make the bucket."""
        import s3fs

        from infinity_mm.storage import files

        for name, value in self.env.items():
            patch.setenv(name, value)
        files._s3.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()
        # moto's objects live as long as the process: an earlier test file may have left some.
        reset = urllib.request.Request(f"{self.env['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        fs, _ = files.open_fs(f"s3://{BUCKET}")
        fs.mkdir(BUCKET)
        self.restart()

    def restart(self, *, before: Hook | None = None, after: Hook | None = None) -> None:
        """Count writes from 1 again, with these hooks."""
        with self._one:
            self.writes, self.before, self.after = [], before, after

    def _handle(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._one:
            if method not in WRITES:
                return list(self._app(environ, start_response))
            self.writes.append((method, path))
            number = len(self.writes)
            fault = self.before and self.before(number, method, path)
            if fault != "refuse":
                answer: list[Any] = []
                body = list(self._app(environ, lambda *args: answer.append(args)))
                fault = fault or (self.after and self.after(number, method, path))
                if not fault:
                    start_response(*answer[0])
                    return body
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [_UNAVAILABLE]
